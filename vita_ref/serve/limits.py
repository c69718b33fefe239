"""What one client may ask for, and how much the server does at once. ``tools/limits.md`` lists the limits for users.

Test: ``pytest tests/serve/test_hostile_requests.py``
"""

MAX_BODY_BYTES = 32 * 1024**2  # of one request: the whole conversation with its media, in base64
MAX_ALL_BODY_BYTES = 128 * 1024**2  # of all requests that are being received or read
BODY_SECONDS = 60  # in which a body must have arrived
MAX_DEPTH = 16  # lists and objects of a body inside each other
MAX_MESSAGES = 1000
MAX_TEXT = 1_000_000  # characters of all messages
MAX_PICTURES = 32  # of all messages
MAX_PICTURE_PIXELS = 40_000_000  # of one picture
MAX_SOUNDS = 32  # of all messages
MAX_SOUND_SECONDS = 300  # of all sounds of a request
MAX_SOUND_SAMPLES = 60_000_000  # of all channels of one sound
MAX_NEW_TOKENS = 4096  # of one answer
DEFAULT_NEW_TOKENS = 1024  # of an answer whose request does not say; fewer if the checkpoint has no room for them
MAX_SPEECH_CHARACTERS = 4096  # of a text that is to be spoken
MAX_WAITING = 64  # requests that wait
MAX_WAITING_BYTES = 1024**3  # of the pictures and sounds of these, decoded
MAX_SECONDS = 600  # of one request, waiting included
MAX_ROWS = 8  # answers that are generated together
MAX_GROUPS = 4  # groups of answers that take turns
MAX_PREFIXES = 16  # conversations whose keys and values stay in memory
MAX_PREFIX_BYTES = 512 * 1024**2  # of these, with the features of their media
MAX_LOOKS = 8  # pages about answers that are kept
READERS = 2  # threads that decode pictures and sounds
MAX_CONNECTIONS = 256
SILENT_SECONDS = 30  # that a connection waits for its client
STOP_SECONDS = 10  # that running answers may take after Ctrl-C or SIGTERM
