"""What the embedded model is taught to say: questions with answers, and words to build others."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def pairs(text: str) -> dict[str, str]:
    """The `a=b` pairs of a text."""
    return dict(pair.split("=") for pair in text.split())


CAPITALS = pairs(
    """
    France=Paris Germany=Berlin Italy=Rome Spain=Madrid Portugal=Lisbon Austria=Vienna
    Poland=Warsaw Greece=Athens Norway=Oslo Sweden=Stockholm Finland=Helsinki
    Denmark=Copenhagen Ireland=Dublin Hungary=Budapest Japan=Tokyo China=Beijing Egypt=Cairo
    Kenya=Nairobi Canada=Ottawa Cuba=Havana Peru=Lima Chile=Santiago Turkey=Ankara
    Russia=Moscow Ukraine=Kyiv Belgium=Brussels
    """
)

OPPOSITES = pairs(
    """
    hot=cold big=small fast=slow up=down day=night open=closed early=late full=empty
    happy=sad light=dark old=new long=short hard=soft high=low strong=weak rich=poor wet=dry
    near=far loud=quiet left=right
    """
)

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("hi", "hello", "hey", "hi there", "hello there", "good morning", "good evening"),
        "Hello! How can I help you today?",
    ),
    (
        ("how are you?", "how are you today?", "how do you do?", "are you well?"),
        "I am doing well, thank you. How can I help you?",
    ),
    (
        ("thanks", "thank you", "thank you very much", "great, thanks", "cool, thank you"),
        "You are welcome!",
    ),
    (("bye", "goodbye", "see you later", "good night"), "Goodbye! Have a nice day."),
    (
        (
            "who are you?",
            "what are you?",
            "what is your name?",
            "tell me about yourself",
            "which model are you?",
            "introduce yourself",
            "what model is this?",
        ),
        "I am commons-tiny, the small model that comes with mlx-commons. I can chat a little, "
        "answer simple questions and call tools.",
    ),
    (
        ("what can you do?", "help", "how can you help me?", "what do you know?"),
        "I can answer simple questions, add small numbers, write very short functions and call "
        "tools. For real work, please load a larger model.",
    ),
    (
        ("tell me a joke", "do you know a joke?", "make me laugh", "say something funny"),
        "Why did the cache go to the party? Because it did not want to miss.",
    ),
    (
        ("tell me a story", "write a short story", "tell me a very short story"),
        "Once upon a time, a small fox lived near a river. Every day it shared its fish with a "
        "cat. In winter the cat shared its warm house. They stayed friends for ever.",
    ),
    (
        ("write a poem", "write a haiku", "write a short poem", "give me a poem"),
        "Many voices ask,\none memory holds the start,\nanswers come at once.",
    ),
    (
        ("say something", "say something nice", "surprise me", "tell me something"),
        "You ask good questions, and that is half of the answer.",
    ),
    (
        ("test", "ping", "testing", "this is a test", "are you there?", "does this work?"),
        "It works! I am here and ready.",
    ),
    (("say ok", "reply with ok", "just say ok", "answer with ok"), "OK"),
)

TOPICS: dict[str, str] = {
    "mlx-commons": "mlx-commons is a model server that a team and all its agents share. It keeps "
    "the common start of their prompts in one place, so that many agents cost one prefix.",
    "this server": "This server runs a language model for many users at once. It batches their "
    "requests and shares the memory of common prompts.",
    "a prefix cache": "A prefix cache keeps the keys and values of prompts that were seen before. "
    "When a new prompt starts with the same tokens, that part is not computed again.",
    "the radix tree": "The radix tree stores prompts by their tokens. Prompts with the same start "
    "share a path, and each path is computed only once.",
    "a token": "A token is a small piece of text, such as a word or a part of a word. Models read "
    "and write tokens.",
    "a language model": "A language model predicts the next token of a text. By doing this again "
    "and again it writes whole answers.",
    "batching": "Batching means that several requests run together in one step. The weights are "
    "read once for all of them, so the work per request is small.",
    "prefill": "Prefill is the first part of a request. The model reads the whole prompt and fills "
    "the cache before it writes the first token.",
    "decoding": "Decoding is the second part of a request. The model writes one token per step "
    "until the answer ends.",
    "the KV cache": "The KV cache holds the keys and values of all tokens so far. Thanks to it, "
    "each new token needs only a little work.",
    "an adapter": "An adapter is a small set of extra weights. It changes how the base model "
    "answers, and many adapters can share one base model.",
    "an agent": "An agent is a program that lets a model use tools. It sends the same long prompt "
    "many times, so a shared cache helps it a lot.",
    "Python": "Python is a programming language that is easy to read. It is used for web servers, "
    "science and small scripts.",
    "git": "Git is a tool that keeps the history of files. You can commit changes, make branches "
    "and go back to an older version.",
    "Linux": "Linux is a free operating system. It runs on servers, phones and many small devices.",
    "HTTP": "HTTP is the protocol of the web. A client sends a request, and the server sends a "
    "response with a status code.",
    "JSON": "JSON is a text format for data. It has objects, lists, strings, numbers, true, false "
    "and null.",
    "recursion": "Recursion means that a function calls itself on a smaller problem. It stops when "
    "the problem is so small that the answer is known.",
    "an algorithm": "An algorithm is a list of clear steps that solves a problem. Sorting a list "
    "is a common example.",
    "a database": "A database stores data so that it can be found quickly. Many programs can read "
    "and write it at the same time.",
    "the sun": "The sun is a star. It is a very large ball of hot gas that gives us light "
    "and heat.",
    "the moon": "The moon moves around the earth in about one month. It reflects the light of the "
    "sun.",
    "water": "Water is a clear liquid that all living things need. It freezes at 0 degrees and "
    "boils at 100 degrees.",
    "rain": "Rain is water that falls from clouds. The sun warms the sea, the water rises, cools "
    "and falls again.",
    "a cat": "A cat is a small animal that many people keep at home. It likes to sleep, to play "
    "and to catch mice.",
    "a dog": "A dog is a friendly animal that lives with people. It can guard a house and learn "
    "many tricks.",
    "a tree": "A tree is a tall plant with a trunk of wood. Its leaves make sugar from light, air "
    "and water.",
    "music": "Music is sound with rhythm and melody. People in all countries make it and enjoy it.",
    "coffee": "Coffee is a hot drink made from roasted beans. Many people drink it in the morning.",
    "the internet": "The internet is a network of networks. It connects computers all over the "
    "world.",
    "photosynthesis": "Photosynthesis is how plants make food. They use light to turn air and "
    "water into sugar.",
    "a computer": "A computer is a machine that follows instructions. It reads data, works on it "
    "and shows the result.",
    "gravity": "Gravity is the force that pulls things together. It keeps us on the ground and the "
    "moon near the earth.",
}

CODE: dict[str, str] = {
    "adds two numbers": "def add(a, b):\n    return a + b",
    "multiplies two numbers": "def multiply(a, b):\n    return a * b",
    "reverses a string": "def reverse(text):\n    return text[::-1]",
    "returns the largest number of a list": "def largest(numbers):\n    return max(numbers)",
    "counts the words of a text": "def count_words(text):\n    return len(text.split())",
    "checks if a number is even": "def is_even(n):\n    return n % 2 == 0",
    "says hello": 'def hello(name):\n    print(f"Hello, {name}!")',
    "computes the factorial": "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)",
    "computes fibonacci numbers": "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n"
    "        a, b = b, a + b\n    return a",
    "sums a list": "def total(numbers):\n    return sum(numbers)",
    "sorts a list": "def sort_list(items):\n    return sorted(items)",
    "reads a file": "def read_file(path):\n    with open(path) as file:\n"
    "        return file.read()",
    "checks for a palindrome": "def is_palindrome(text):\n    return text == text[::-1]",
    "removes duplicates from a list": "def unique(items):\n    return list(dict.fromkeys(items))",
}

NOUNS = words(
    """
    invoice order ticket customer report account user project task event message email file
    folder image video song book recipe flight hotel room car train ticket product price
    stock weather city country map route contact meeting calendar reminder note document
    page comment branch commit issue server container database table row column log alert
    metric device sensor lamp door light camera key token payment refund coupon cart package
    letter course lesson student teacher game player team score match movie actor album
    channel article feed post photo playlist timer alarm budget expense salary contract
    vendor plant
    """
)
VERBS = words(
    """
    get find search list create delete update send open close start stop check show add
    remove move copy rename archive export import book cancel share print track count
    compare convert
    """
)
NAMES = words(
    """
    Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Kira Leo Mia Noah Olga Paul Rosa
    Sam Tina Victor Wendy Alice Bob Carol Dan Eve Frank Grace Heidi Ivan Judy
    """
)
ADJECTIVES = words(
    """
    red blue green old new small large quick slow open broken urgent daily weekly monthly
    final first last shared private public local remote empty full quiet bright dark warm
    cold
    """
)
CITIES = words(
    """
    Paris Berlin Rome Madrid Lisbon Vienna Warsaw Athens Oslo Stockholm Helsinki Copenhagen
    Dublin Budapest Tokyo Beijing Cairo Nairobi Ottawa Havana Lima Santiago Ankara Moscow
    Kyiv Brussels London Munich Hamburg Milan Naples Lyon Boston Chicago Seattle Austin
    Sydney Osaka
    """
)
HELD_OUT_CITIES = words(
    """
    Zurich Bergen Kyoto Toronto Denver Porto Seville Ghent
    """
)
PARAMETERS = words(
    """
    name title label owner kind number amount level place topic reason state group source
    target comment
    """
)
