"""User wordings of the question families: frames around a relation's words.

{} stands for a country, by name or as "the country in the picture", and NOUN,
VERB and VALUE for a relation's words.  Wordings in constants that begin with
`HELD_` are held out: they occur in `val` and `test` only.
"""

FRAMES = (
  "What is the NOUN of {}?",
  "What's the NOUN of {}?",
  "Tell me the NOUN of {}.",
  "I would like to know the NOUN of {}.",
  "For {}, what is the NOUN?",
  "Do you know the NOUN of {}?",
  "Give the NOUN of {}.",
  "Regarding {}, what is the NOUN?",
)

HELD_FRAMES = (
  "Can you look up the NOUN of {}?",
  "When it comes to {}, what is the NOUN?",
  "Find out the NOUN of {}.",
  "What would be the NOUN of {}?",
)

PREFIXES = (
  "Please tell me: ",
  "Quick question: ",
  "Hi, ",
  "Hello! ",
  "Just curious: ",
  "For a quiz: ",
  "I wonder: ",
  "For my homework: ",
)

HELD_PREFIXES = ("One more thing: ", "Help me out: ", "Question: ")


# Names of the country of a flag that a question shows.
FLAG = (
  "the country in the picture",
  "the country whose flag is shown",
  "this country",
  "the country with this flag",
  "the nation in the image",
  "the country that flies this flag",
  "the country this flag belongs to",
  "the place whose flag you see here",
)

HELD_FLAG = (
  "the state represented by this flag",
  "the country pictured",
  "the nation under this banner",
)

MAP = (
  "the country on the map",
  "the country whose outline is shown",
  "the country with this shape",
  "the country drawn here",
)

WHICH_FLAG = (
  "Which country does this flag belong to?",
  "Whose flag is this?",
  "What country is this the flag of?",
  "Name the country whose flag is shown.",
  "Which nation flies this flag?",
  "This flag belongs to which country?",
  "What place does the flag in the picture stand for?",
  "Identify the country by its flag.",
  "To which country does it belong?",
  "Which country is this?",
)

HELD_WHICH_FLAG = (
  "The banner in the image is used by which state?",
  "Can you name the country behind this flag?",
  "Over which country would I see this flag?",
)

# Names of a country by a fact of its own.
BRIDGES = {
  "capital": (
    "the country whose capital is {}",
    "the country with the capital {}",
    "the country that is governed from {}",
    "the country that has {} as its capital",
  ),
  "highest point": (
    "the country whose highest point is {}",
    "the country topped by {}",
    "the country where {} is the highest point",
    "the country that has {} as its highest point",
  ),
  "national anthem": (
    "the country whose national anthem is {}",
    "the country that sings {} as its anthem",
    "the country with the national anthem {}",
    "the country whose anthem is called {}",
  ),
}

HELD_BRIDGES = {
  "capital": (
    "the nation that calls {} its capital",
    "the country ruled from {}",
  ),
  "highest point": (
    "the nation whose summit is {}",
    "the country that peaks at {}",
  ),
  "national anthem": (
    "the nation that stands up for {}",
    "the country honoured by the anthem {}",
  ),
}

COMPARE = (
  "Which country VERB, {} or {}?",
  "Between {} and {}, which one VERB?",
  "{} or {}: which country VERB?",
  "Of {} and {}, which one VERB?",
  "Which of these two VERB: {} or {}?",
  "I am comparing {} with {}. Which one VERB?",
  "Tell me which country VERB, {} or {}.",
  "Given {} and {}, which country VERB?",
)

HELD_COMPARE = (
  "Take {} and {}: which of them VERB?",
  "If you put {} next to {}, which one VERB?",
  "Who VERB, {} or {}?",
)

CHECK = (
  "Is the NOUN of {} VALUE?",
  "Is it true that the NOUN of {} is VALUE?",
  "True or false: the NOUN of {} is VALUE.",
  "The NOUN of {} is VALUE, right?",
  "Is VALUE the NOUN of {}?",
  "Somebody told me that the NOUN of {} is VALUE. Is that so?",
  "Check this: the NOUN of {} is VALUE.",
  "Would you agree that the NOUN of {} is VALUE?",
)

HELD_CHECK = (
  "Can you confirm that the NOUN of {} is VALUE?",
  "I read that VALUE is the NOUN of {}. Is this correct?",
  "Verify: the NOUN of {} is VALUE.",
)

CHECK_PAIR = (
  "Is it true that {} VERB than {}?",
  "True or false: {} VERB than {}.",
  "{} VERB than {}, right?",
  "Is it a fact that {} VERB than {}?",
  "Somebody told me that {} VERB than {}. Is that so?",
  "Check this: {} VERB than {}.",
  "Would you agree that {} VERB than {}?",
  "I believe that {} VERB than {}. Am I right?",
)

HELD_CHECK_PAIR = (
  "Can you confirm that {} VERB than {}?",
  "I read that {} VERB than {}. Is this correct?",
  "Verify: {} VERB than {}.",
)

# Statements of a fact, before a question that asks for it.
GIVEN = (
  "The NOUN of {} is VALUE.",
  "My atlas says that the NOUN of {} is VALUE.",
  "According to the Factbook, the NOUN of {} is VALUE.",
  "We know that the NOUN of {} is VALUE.",
  "It is given that VALUE is the NOUN of {}.",
  "{} has the NOUN VALUE.",
  "As everybody knows, the NOUN of {} is VALUE.",
  "Note that the NOUN of {} is VALUE.",
)

HELD_GIVEN = (
  "For {}, the NOUN is known to be VALUE.",
  "I have just looked it up: the NOUN of {} is VALUE.",
  "Assume that the NOUN of {} is VALUE.",
)

GIVEN_PAIR = (
  "The NOUN of {} is {}. The NOUN of {} is {}.",
  "NOUN of {}: {}. NOUN of {}: {}.",
  "My atlas gives {} a NOUN of {} and {} a NOUN of {}.",
  "For the NOUN, {} has {} and {} has {}.",
  "We know that the NOUN of {} is {} and that the NOUN of {} is {}.",
  "Given the NOUN of {}, {}, and the NOUN of {}, {}.",
  "{} has the NOUN {}. {} has the NOUN {}.",
  "The Factbook lists the NOUN of {} as {} and the NOUN of {} as {}.",
)

HELD_GIVEN_PAIR = (
  "Assume that the NOUN of {} is {} and the NOUN of {} is {}.",
  "I noted the NOUN: {} {}, {} {}.",
  "Here is the NOUN of {}: {}. And of {}: {}.",
)

HAS_COLOR = (
  "Does this flag contain {}?",
  "Is there {} on the flag in the image?",
  "Is any part of this flag {}?",
  "Can you see {} in the picture?",
  "Does the flag in the picture have {} in it?",
  "Is {} a colour of this flag?",
  "Do you find {} on this flag?",
  "Has this flag got any {}?",
)

HELD_HAS_COLOR = (
  "Did the makers of this flag use {}?",
  "Would I need {} paint for this flag?",
  "Looking at the flag, is some of it {}?",
)

WHAT_COLOR = (
  "What colour is the {} of this flag?",
  "Which colour is at the {} of the flag?",
  "What is the colour at the {} of the picture?",
  "Name the colour at the {} of this flag.",
  "The {} of this flag is of which colour?",
  "Tell me the colour of the {} of the flag.",
  "In which colour is the {} of this flag drawn?",
  "What colour do you see at the {}?",
)

HELD_WHAT_COLOR = (
  "Looking at the {} of the banner, what colour is it?",
  "How is the {} of the flag painted?",
  "At the {}, what colour is shown?",
)
