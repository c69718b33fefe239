"""Questions that are outside the demo world, which are refused: many topics, and near misses that use the world's words.

Sport, cooking, music and money are never spoken of here: the second renderer measures with them.

Test: ``pytest tests/tools/test_demo_world.py``
"""

import re

from tools.demo.scene import COLOURS
from tools.demo.shapes import SHAPES

LISTS = {
    "noun": "dog cat horse cow sheep bird fish lion tiger elephant mouse rabbit bear wolf fox monkey snake spider bee ant frog duck "
            "eagle owl whale shark car bus train plane bike truck boat ship rocket house door window roof wall table chair bed lamp "
            "clock phone computer keyboard screen book pen paper bag box bottle cup key umbrella shirt shoe hat coat dress tree "
            "flower leaf grass river lake sea mountain hill road bridge tower castle church school hospital garden park sun moon sky "
            "cloud rain snow wind fire stone sand robot camera button icon menu logo flag sign map face hand eye nose ear foot man "
            "woman child boy girl baby doctor teacher farmer king queen soldier pilot nurse person hexagon pentagon oval rectangle "
            "diamond arrow ring cube sphere cylinder pyramid crescent line dot spiral rhombus ellipse octagon trapezoid",
    "place": "France Spain Italy Germany Poland Norway Japan China India Brazil Canada Mexico Egypt Kenya Peru Chile Paris London "
             "Berlin Rome Madrid Tokyo Moscow Cairo Boston Chicago Texas Africa Europe Asia America Australia Greece Turkey Iran",
    "person": "Einstein Newton Napoleon Shakespeare Caesar Lincoln Darwin Galileo Cleopatra Gandhi Plato Churchill Columbus Tolstoy "
              "Curie Tesla Edison Washington Leonardo Picasso Socrates Marx Freud Kant Homer",
    "stuff": "water air gold iron wood glass oil ice steel plastic paper cotton silver copper oxygen carbon light heat electricity",
    "idea": "love war peace history science physics chemistry biology philosophy religion art language grammar time space gravity "
            "evolution democracy politics climate health sleep memory happiness death life truth freedom education mathematics logic",
    "action": "drive a car|swim|fly|run|sleep|dance|speak French|write a letter|read my mail|open the door|close the window|call my mother|"
              "send an email|book a flight|set an alarm|turn on the light|drive me home|fix my computer|learn a language|"
              "write code|solve an equation|grow a tree|build a house|lose weight|play chess|paint a wall|tell the time|clean the room",
    "number": "two three four five six seven eight nine ten twelve twenty fifty a hundred",
    "adjective": "old heavy tall fast expensive beautiful dangerous warm cold soft hard loud clean dirty rich poor happy sad strong",
    "color_other": "brown white grey gray gold silver turquoise violet beige cyan magenta maroon",
}  # fmt: skip
LISTS = {name: words.split("|") if "|" in words else words.split() for name, words in LISTS.items()}
LISTS |= {"color": list(COLOURS), "shape": list(SHAPES)}
FAR = """What is the capital of {place}?|Where is {place}?|How many people live in {place}?|Who rules {place}?
What language do they speak in {place}?|Who was {person}?|When was {person} born?|Where did {person} live?
How old was {person}?|What did {person} do?|Who wrote about {person}?|Why is {person} famous?
What is the weather today?|What is the weather in {place}?|Will it rain tomorrow?|Is it cold outside?
How warm is it in {place}?|What time is it?|What day is it today?|What year is it?|What date is it?
When is the next holiday?|What is {idea}?|Explain {idea} to me.|Tell me about {idea}.|Why is {idea} important?
What is the meaning of {idea}?|Who invented {idea}?|Define {idea}.|What do you think of {idea}?|Is {idea} real?
Can you {action}?|Please {action}.|How do I {action}?|I want to {action}.|Help me to {action}.
Could you {action} for me?|Teach me how to {action}.|Do you like to {action}?|What is {number} plus {number}?
What is {number} times {number}?|Is {number} more than {number}?|What's {number} minus {number}?
Calculate {number} divided by {number}.|What is 2 + 2?|How much is 3 times 7?|What is the square root of 16?
Count to {number}.|Tell me a joke.|Tell me a story.|Tell me a secret.|Write a poem.
Write a poem about the {noun}.|Write a story about a {noun}.|Tell me about the {noun}.
Translate this into French.|How do you say {noun} in Spanish?|Spell {noun}.|What does {noun} mean?
What rhymes with {noun}?|Do you like {stuff}?|What is {stuff} made of?|Where does {stuff} come from?
How is {stuff} made?|Is {stuff} heavier than {stuff}?|Why is {stuff} useful?|How {adjective} is a {noun}?
Why are {noun}s so {adjective}?|Is a {noun} {adjective}?|Do {noun}s sleep?|What do {noun}s eat?
How long does a {noun} live?|How fast is a {noun}?|Who owns the {noun}?|Have you seen my {noun}?
I lost my {noun}.|My {noun} is {adjective}.|I like {noun}s.|I am {adjective}.|Are you {adjective}?
Do you feel {adjective}?|What makes you {adjective}?|Do you believe in {idea}?|Where do you live?
How old are you?|Who made you?|Do you love me?|Do you have a {noun}?|What is your favorite {noun}?
Can you see my {noun}?|Are you married?|Where are you from?|What is the news today?|Who won the election?
Who is the president?|Who is the king of {place}?|What happened in {place}?|How far is it to {place}?
How do I get to {place}?|Show me a map of {place}.|Is {place} bigger than {place}?|When was {place} founded?
What does the text say?|Read the text.|What is written there?|Click the {noun}.|Where do I click?
What does the {noun} do?|Open the {noun}.|How do I turn off the {noun}?|Is the {noun} broken?|Search the web.
Play a game with me.|Remind me tomorrow.|Call a doctor.|What is love?|Why?|How?|When?|Really?|Are you sure?
I do not understand.|You are wrong.|Never mind.|Shut up.|The {noun} is in the {noun}.|Yesterday I saw a {noun}.
A {noun} and a {noun} went to {place}.|We will go to {place} next week.|Nobody knows {person}.
He told me about {idea}."""
NEAR = """What color is the {noun}?|What color is a {noun}?|What color are {noun}s?|Which color does the {noun} have?
What shape is the {noun}?|What shape is a {noun}?|How many {noun}s are there?|How many {noun}s do you see?
Is there a {noun}?|Is there a {noun} in the picture?|Do you see a {noun}?|Can you see the {noun}?
How big is the {noun}?|How big is a {noun}?|Where is the {noun}?|Where is my {noun}?
Is the {noun} left or right of the {noun}?|What is left of the {noun}?|What is above the {noun}?
Which is bigger, a {noun} or a {noun}?|Which is bigger, the {noun} or the {shape}?|Describe a {noun}.
Describe the {noun}.|Describe {place}.|Describe {idea}.|{noun} color?|Is there a {color} {noun}?
Where is the {color} {noun}?|How big is the {color} {noun}?|What color is {stuff}?|What color is {idea}?
How many legs does a {noun} have?|How many days are in a week?|What is behind the {noun}?
Which way does the {noun} move?|Where is the {color_other} {noun}?|Why is the {shape} {color}?
Who drew the {shape}?|What is the {shape} made of?|How heavy is the {shape}?|How old is the {color} {shape}?
Paint the {shape} {color}.|Move the {shape} to the left.|Delete the {color} {shape}.|Draw a {color} {shape}.
Draw a {shape} for me.|Rotate the {shape}.|Can you draw a {shape}?|Do you like the {shape}?
Is the {shape} happy?|What does a {shape} mean?|How many corners does a {shape} have?
What is the area of the {shape}?|What is a {shape}?|Who invented the {shape}?|Is {color} a nice color?
Do you like {color}?|What is your favorite color?|What color do you like?|What is your favorite shape?
How do you mix {color}?|What color is the background?|How many colors are there?|Is the picture beautiful?
Who took the picture?|When was the picture taken?|How big is the picture?|What is the meaning of {color}?
Why is the sky {color}?|Make the {shape} bigger.|Add a {color} {shape}.|Is the {shape} heavier than the {shape}?
Is the {shape} {adjective}?|What is inside the {shape}?|How {adjective} is the {shape}?
The {color} {shape} is {adjective}.|I like the {shape}.|I have a {color} {noun}.|My {noun} is {color}.
How much is the {color} {shape}?|What does the {shape} eat?|Where can I buy a {color} {noun}?
What did the {shape} say?|Does the {shape} sing?|Is the {noun} {color}?|Are {noun}s {color}?"""
FAR, NEAR = (tuple(text.replace("\n", "|").split("|")) for text in (FAR, NEAR))
HELD_OUT_NAMES = re.compile("red star|green triangle|blue heart|yellow circle|purple square|black cross")


def other_question(rng):
    """Something to refuse: of the wide world, near to this world, or letters without a meaning."""
    chance = rng.random()
    if chance < 0.03:
        words = ("".join(rng.choice("abcdefghijklmnoprstuvwy") for _ in range(rng.randint(2, 8))) for _ in range(rng.randint(1, 4)))
        return " ".join(words)
    while True:
        text = rng.choice(NEAR if chance < 0.5 else FAR)
        while "{" in text:
            name = re.search(r"\{(\w+)\}", text)[1]
            word = rng.choice(LISTS[name])
            text = text.replace(f"{{{name}}}", word, 1)
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
        if not HELD_OUT_NAMES.search(text):
            return text[0].upper() + text[1:]
