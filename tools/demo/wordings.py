"""The words of the demo world's questions: what training says, in many ways.

In a template ``{x}`` and ``{y}`` are objects ("red star", "star", "red object"), ``{s}`` is a shape and ``{ss}`` its
plural, ``{c}`` a colour, ``{a}`` an object with its article, ``{d}`` a direction ("left of"). The first template of a
kind is the page's own. The second renderer measures with wordings that are not here.

Test: ``pytest tests/tools/test_demo_world.py``
"""

KINDS = {
    "color": (
        "What color is the {s}?", "Which color is the {s}?", "What is the color of the {s}?", "What's the color of the {s}?",
        "Tell me the color of the {s}.", "{s} color?", "Name the color of the {s}.", "Which color does the {s} have?",
        "What color does the {s} have?", "Can you tell me the color of the {s}?", "Please name the color of the {s}.",
        "The {s} is what color?", "What's the {s}'s color?", "color of the {s}?", "Say what color the {s} is.",
        "Tell me what color the {s} is.", "Of what color is the {s}?", "What color's the {s}?", "Give me the color of the {s}.",
        "Do you know what color the {s} is?", "What colored {s} is it?", "Identify the color of the {s}.",
        "May I ask what color the {s} has?", "Let me know what color the {s} is.", "The color of the {s}, please.",
    ),
    "shape": (
        "What shape is the {c} object?", "Which shape is the {c} object?", "What is the shape of the {c} object?",
        "What's the shape of the {c} object?", "Tell me the shape of the {c} object.", "{c} object shape?",
        "Name the shape of the {c} object.", "Which shape does the {c} object have?", "What shape does the {c} object have?",
        "Can you tell me the shape of the {c} object?", "Please name the shape of the {c} object.", "What is the {c} object?",
        "What shape is the {c} one?", "What is {c}?", "Which shape is {c}?", "What's the {c} thing?", "The {c} object is what shape?",
        "Tell me what shape the {c} thing has.", "What kind of shape is the {c} object?", "What {c} shape is there?",
        "Which object is {c}?", "shape of the {c} object?", "Identify the shape of the {c} object.", "What's the {c} object?",
        "What form does the {c} object have?", "Let me know what shape the {c} object is.",
    ),
    "count": (
        "How many objects are there?", "How many objects do you see?", "How many things are in the picture?", "Count the objects.",
        "How many shapes are there?", "What is the number of objects?", "number of objects?", "How many objects are in the image?",
        "Tell me how many objects there are.", "Can you count the objects?", "Please count the shapes.", "How many things are there?",
        "How many shapes can you see?", "What's the number of shapes?", "Count all the shapes in the picture.", "how many objects?",
        "How many shapes does the picture have?", "Give me the number of objects.", "How many figures are there?",
        "How many items are there?", "Count everything in the image.", "There are how many objects?",
    ),
    "count_shape": (
        "How many {ss} are there?", "How many {ss} do you see?", "How many {ss} are in the picture?", "Count the {ss}.",
        "What is the number of {ss}?", "number of {ss}?", "how many {ss}?", "Tell me how many {ss} there are.",
        "Can you count the {ss}?", "Please count the {ss}.", "How many {ss} can you see?", "What's the number of {ss}?",
        "How many of the objects are {ss}?", "How many {ss} does the picture have?", "Give me the number of {ss}.",
        "There are how many {ss}?", "How many {ss} are in the image?", "{ss} count?", "Say how many {ss} there are.",
    ),
    "count_color": (
        "How many {c} objects are there?", "How many {c} objects do you see?", "How many {c} things are in the picture?",
        "Count the {c} objects.", "What is the number of {c} objects?", "number of {c} objects?", "how many {c} objects?",
        "Tell me how many {c} objects there are.", "Can you count the {c} objects?", "Please count the {c} shapes.",
        "How many {c} shapes can you see?", "What's the number of {c} objects?", "How many objects are {c}?", "How many are {c}?",
        "How many of the objects are {c}?", "Give me the number of {c} objects.", "There are how many {c} objects?",
        "How many {c} things are there?", "How many {c} shapes does the picture have?", "How many {c} ones are there?",
    ),
    "exists": (
        "Is there {a}?", "Is there {a} in the picture?", "Do you see {a}?", "Can you see {a}?", "Are there any {xs}?",
        "Does the picture have {a}?", "Does the image show {a}?", "any {x}?", "Tell me if there is {a}.", "Is {a} there?",
        "Can you tell me whether there is {a}?", "Is there any {x}?", "Is {a} in the image?", "Check if there is {a}.",
        "Do you find {a}?", "There is {a}, right?", "Please say whether there is {a}.", "Is there {a} here?", "Does it contain {a}?",
        "{a}?", "Are there {xs}?", "Has the picture got {a}?", "Say if you see {a}.",
    ),
    "size": (
        "How big is the {x}?", "How large is the {x}?", "What size is the {x}?", "What is the size of the {x}?",
        "What's the size of the {x}?", "Tell me the size of the {x}.", "{x} size?", "Which size does the {x} have?",
        "Name the size of the {x}.", "Can you tell me how big the {x} is?", "Please tell me the size of the {x}.",
        "Is the {x} small, large or huge?", "What size does the {x} have?", "The {x} is how big?", "size of the {x}?",
        "Which size is the {x}?", "Say how big the {x} is.", "Tell me how large the {x} is.", "How big's the {x}?",
        "Is the {x} small or large?", "Give me the size of the {x}.", "What's the {x}'s size?",
    ),
    "left_right": (
        "Is the {x} left or right of the {y}?", "Is the {x} on the left or the right of the {y}?",
        "Is the {x} to the left or to the right of the {y}?", "Which side of the {y} is the {x} on, left or right?",
        "Tell me if the {x} is left or right of the {y}.", "{x}: left or right of the {y}?", "{x} left or right of {y}?",
        "On which side of the {y} is the {x}, left or right?", "Can you tell me if the {x} is left or right of the {y}?",
        "Say whether the {x} is left or right of the {y}.", "Please tell me whether the {x} is to the left or right of the {y}.",
        "The {x}, is it left or right of the {y}?", "Does the {x} lie left or right of the {y}?",
        "Is the {x} right or left of the {y}?", "Compared with the {y}, is the {x} left or right?",
    ),
    "above_below": (
        "Is the {x} above or below the {y}?", "Is the {x} higher or lower than the {y}?", "Is the {x} over or under the {y}?",
        "Tell me if the {x} is above or below the {y}.", "{x}: above or below the {y}?", "{x} above or below {y}?",
        "Does the {x} lie above or below the {y}?", "Can you tell me if the {x} is above or below the {y}?",
        "Say whether the {x} is above or below the {y}.", "Please tell me whether the {x} is above or below the {y}.",
        "The {x}, is it above or below the {y}?", "Is the {x} below or above the {y}?", "Compared with the {y}, is the {x} above or below?",
        "Is the {x} located above or below the {y}?",
    ),
    "beside": (
        "What is {d} the {x}?", "What's {d} the {x}?", "Which object is {d} the {x}?", "What do you see {d} the {x}?",
        "Tell me what is {d} the {x}.", "{d} the {x}?", "What lies {d} the {x}?", "Name the object {d} the {x}.",
        "Can you tell me what is {d} the {x}?", "Please say what is {d} the {x}.", "What stands {d} the {x}?",
        "What object is directly {d} the {x}?", "Is there anything {d} the {x}?", "What can be seen {d} the {x}?",
        "Which thing is {d} the {x}?", "What is there {d} the {x}?", "{d} the {x} is what?", "Say what's {d} the {x}.",
    ),
    "bigger": (
        "Which object is {b}, the {x} or the {y}?", "Which is {b}, the {x} or the {y}?", "What is {b}, the {x} or the {y}?",
        "Is the {x} or the {y} {b}?", "Which one is {b}: the {x} or the {y}?", "Tell me which is {b}, the {x} or the {y}.",
        "{b}: {x} or {y}?", "Of the {x} and the {y}, which is {b}?", "Can you tell me which is {b}, the {x} or the {y}?",
        "Please say which is {b}, the {x} or the {y}.", "What's {b}, the {x} or the {y}?", "Which of the two is {b}, the {x} or the {y}?",
        "Name the {b} one, the {x} or the {y}.", "The {x} or the {y}, which is {b}?", "Compare the {x} and the {y}: which is {b}?",
        "Between the {x} and the {y}, which one is {b}?", "Who is {b}, the {x} or the {y}?",
    ),
    "where": (
        "Where is the {x}?", "Where's the {x}?", "Where do you see the {x}?", "Where in the picture is the {x}?",
        "Tell me where the {x} is.", "{x} position?", "What is the position of the {x}?", "Can you tell me where the {x} is?",
        "In which part of the picture is the {x}?", "Locate the {x}.", "Find the {x}.", "Please show me where the {x} is.",
        "Where can I find the {x}?", "In what place is the {x}?", "What's the place of the {x}?", "where is {x}?",
        "Where does the {x} lie?", "Say where the {x} is.", "Where is the {x} located?", "The {x} is where?",
        "Whereabouts is the {x}?", "Where in the image is the {x}?", "Do you know where the {x} is?",
    ),
    "describe": (
        "Describe the image.", "Describe the picture.", "What do you see?", "What is in the picture?", "What's in the image?",
        "What does the picture show?", "Tell me what you see.", "describe", "Can you describe the image?", "Please describe the picture.",
        "What can you see?", "What is shown here?", "Give me a description of the image.", "What is in this picture?",
        "What are the objects in the picture?", "Describe what you see.", "Explain the picture.", "What's this?", "What is this?",
        "Describe this image.", "List the objects.", "Say what is in the image.", "What is on the picture?", "What objects are there?",
        "Tell me about the picture.", "What do we see here?", "Summarize the image.", "What is there?", "Which objects do you see?",
    ),
    "moving": (
        "What is moving?", "What moves?", "Which object is moving?", "Which object moves?", "What's moving?",
        "Tell me what is moving.", "moving object?", "Name the object that moves.", "Can you tell me what moves?",
        "Please say what is moving.", "Which one is moving?", "What is in motion?", "Which shape moves?", "Which thing is moving?",
        "Does anything move?", "What object changes its place?",
    ),
    "which_way": (
        "Which way does the {x} move?", "Which way is the {x} moving?", "In which direction does the {x} move?",
        "Where does the {x} move?", "Where is the {x} going?", "Tell me which way the {x} moves.", "{x} direction?",
        "What direction does the {x} move in?", "How does the {x} move?", "Can you tell me where the {x} moves?",
        "Please say which way the {x} goes.", "Which way does the {x} go?", "What is the direction of the {x}?",
        "In what direction is the {x} moving?", "Where's the {x} moving?", "Say in which direction the {x} goes.",
        "What does the {x} do?", "Does the {x} move left, right, up or down?",
    ),
    "describe_video": (
        "Describe the video.", "What happens in the video?", "What happens?", "Describe the film.", "What does the video show?",
        "Tell me what happens.", "describe video", "Can you describe the video?", "Please describe the video.",
        "What do you see in the video?", "What's happening?", "Summarize the video.", "Describe the clip.", "Explain what happens here.",
        "What is going on in the video?", "Describe what happens.", "Give me a description of the video.", "Say what happens in the film.",
    ),
}  # fmt: skip
FOLLOW_UPS = {
    "size": ("How big is it?", "How large is it?", "What size is it?", "What is its size?", "And how big is it?", "And its size?",
             "its size?", "Tell me how big it is.", "What's its size?", "Is it small or large?", "Which size does it have?"),
    "where": ("Where is it?", "Where's it?", "Where in the picture is it?", "And where is it?", "Tell me where it is.",
              "Where can I find it?", "where is it", "What is its position?", "Where is it located?", "Say where it is."),
    "color": ("What color is it?", "Which color is it?", "And its color?", "What is its color?", "What's its color?",
              "Tell me its color.", "Which color does it have?", "its color?", "And what color is it?"),
    "shape": ("What shape is it?", "Which shape is it?", "And its shape?", "What is its shape?", "What's its shape?",
              "Tell me its shape.", "What is it?", "its shape?", "And what shape is it?"),
    "next": ("What is next to it?", "What's next to it?", "Which object is next to it?", "What is near it?", "What is beside it?",
             "And what is next to it?", "Tell me what is next to it.", "What is nearest to it?", "next to it?", "What stands next to it?"),
    "beside": ("What is {d} it?", "What's {d} it?", "And {d} it?", "Which object is {d} it?", "And what is {d} it?",
               "Tell me what is {d} it.", "{d} it?", "Is there anything {d} it?", "What lies {d} it?"),
    "same": ("And the {x}?", "What about the {x}?", "How about the {x}?", "And what about the {x}?", "and the {x}",
             "The {x}?", "And for the {x}?", "Now the {x}.", "Same for the {x}?", "Then the {x}?"),
    "same_exists": ("And {a}?", "What about {a}?", "How about {a}?", "Or {a}?", "And is there {a}?", "And what about {a}?",
                    "and {a}", "Or maybe {a}?", "Then {a}?"),
    "same_count": ("And {n}?", "What about {n}?", "How about {n}?", "And how many {n}?", "And what about {n}?", "and {n}",
                   "And the {n}?", "Then {n}?", "How many {n}?"),
}  # fmt: skip
DIRECTIONS = {
    "left": ("left of", "left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "above", "above", "over", "higher than"),
    "below": ("below", "below", "below", "under", "beneath", "lower than"),
}  # fmt: skip
COMPARED = {"bigger": ("bigger", "bigger", "larger"), "smaller": ("smaller", "smaller", "littler", "tinier")}
OBJECTS = ("object", "object", "object", "one", "thing", "shape", "figure")  # of a colour
BEFORE = ("Please tell me: ", "Tell me, ", "So, ", "And ", "Hey, ", "Quick question: ", "Now, ", "Okay, ", "Well, ", "Hi, ", "Look: ",
          "Excuse me, ", "One more thing: ", "I have a question: ", "Please: ")  # fmt: skip
AFTER = (", please?", " please", ", can you tell?", " in the picture?", " in this image?", " here?", " now?")

NO_PICTURE = "Please show me a picture first."
REFUSAL = "I can only answer questions about colored shapes."
NOTHING_KNOWN = "I see none of the shapes I know."
TOO_MANY = "There are more than three objects."
_HELLO, _WELCOME, _BYE = "Hello! Show me a picture and ask me about it.", "You are welcome.", "Goodbye!"
_WHO = "I am a small VITA that looks at pictures of colored shapes."
_CAN = "I can tell you the color, shape, size, place and number of colored shapes, compare them and describe a picture or a video."
CHAT = [(question, answer) for answer, asked in {
    _HELLO: ("Hello!", "Hello.", "Hello there!", "Hi!", "Hi there!", "Hey!", "Hey there!", "Good morning.", "Good evening.", "Good day!",
             "Good afternoon.", "Greetings!", "Hi VITA!", "Hello VITA!", "Nice to meet you."),
    _WELCOME: ("Thanks!", "Thank you.", "Thank you!", "Thank you very much.", "Many thanks!", "Thanks a lot!", "Thanks, that helps.",
               "Great, thanks!", "Thank you so much!", "Ok thanks", "Cheers!", "Very kind of you."),
    _WHO: ("Who are you?", "What are you?", "What is your name?", "Are you a robot?", "Tell me about yourself.", "What's your name?",
           "Introduce yourself.", "Who am I talking to?", "Are you a human?", "Do you have a name?", "Are you an AI?", "What model are you?"),
    _CAN: ("What can you do?", "What do you do?", "Can you help me?", "Help!", "How can you help me?", "What can I ask you?",
           "What do you know?", "Which questions can you answer?", "What are you able to do?", "What are you good at?",
           "What questions can I ask?", "How do you work?", "help"),
    _BYE: ("Goodbye!", "Goodbye.", "Bye!", "Bye bye!", "See you!", "See you later!", "Good night!"),
    "I am fine, thank you.": ("How are you?", "How are you today?", "How do you do?", "How is it going?", "Are you well?"),
}.items() for question in asked]  # fmt: skip
