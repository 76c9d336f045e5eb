"""The closed lists of English words that the rules of `caption_foils.py` know."""

# fmt: off
NUMBERS = set("two three four five six".split())
ARTICLES = {"a", "an", "the", "another"}
DETERMINERS = ARTICLES | NUMBERS | set("his her its their my your our this some each one several many all".split())
PREPOSITIONS = set(
    "in on at of with by near through into over under from for up down off onto behind along across around above as "
    "below beside beneath underneath inside outside between towards toward past against next out like about without "
    "during after before among atop alongside upon".split())
FUNCTION = DETERMINERS | PREPOSITIONS | set(
    "and or but while that who which where when is are was were be being been has have had do does it he she they him "
    "them there not very to also together other others so just himself herself themselves what then than if because "
    "away back outdoors indoors ahead nearby whilst can will would too only still both every no any".split())

# Words of one class exclude each other, but for those between the same bars, which may be said of the same thing. Of
# the first after a bar a foil may be made, if it is not in brackets.
CLASSES = [[group.split() for group in groups.split("|")] for groups in (
    "red orange pink maroon | blue purple teal navy | green | black | white cream | (grey gray silver "
    "| yellow gold golden tan beige brown", "small little tiny mini | large big huge giant enormous", "long | short",
    "tall | short", "young younger teenage | old older elderly", "wooden wood | metal steel iron | plastic | brick "
    "| stone concrete rock cement | (leather", "striped | plaid checkered | (spotted polka", "sunny | cloudy overcast",
    "two | three | four | five", "snowy icy | grassy | sandy | rocky | muddy | (paved dirt", "wet | dry",
    "empty | crowded full busy packed", "open opened | closed shut", "smiling happy laughing | sad crying",
    "clean | dirty messy muddy", "male | female",
)]
ADJECTIVES = {word.strip("(") for groups in CLASSES for group in groups for word in group} - {"rock", "opened", "wood"}
FIXED = set("white-water orange-juice red-wine white-wine green-light red-light green-beans little-league tall-grass "
            "open-mouth full-size open-field open-area wet-suit blue-sky old-fashioned big-ben full-of red-bull "
            "short-sleeved long-haired short-haired long-sleeved dark-haired young-at open-air dry-erase".split())
NEXT_TO = "far away from"
OPPOSITES = {
    "left": "right", "right": "left", "above": "below", "below": "above", "over": "under", "under": "over",
    "underneath": "above", "beneath": "above", "behind": "in front of", "in front of": "behind",
    "on top of": "underneath", "inside": "outside", "outside": "inside", "inside of": "outside of",
    "outside of": "inside of", "onto": "off of", "off of": "onto", "into": "out of", "out of": "into",
    "toward": "away from", "towards": "away from", "away from": "towards", "next to": NEXT_TO, "beside": NEXT_TO,
    "near": NEXT_TO, "close to": "far from", "indoors": "outdoors", "outdoors": "indoors",
}
ENDINGS = {"inside", "outside", "indoors", "outdoors"}  # may stand without an object
SLOPES = set("hill hills stairs steps slope mountain ladder slide staircase".split())
OPPOSITES_BEFORE = {  # of these only before some nouns
    "up": ("down", SLOPES), "down": ("up", SLOPES),
    "on": ("under", set("table bed bench couch sofa chair desk shelf counter bridge stool blanket".split())),
    "in": ("outside", set("room kitchen house building car bathroom bedroom store restaurant box boat train bus tent "
                          "office airport garage pool stadium barn cage suitcase".split())),
}
RELATIONAL = set(  # nouns that say where, when, how many, which part or what in general: no objects
    "front side top back middle edge group couple pair bunch lot lots end part piece slice row line view picture "
    "photo photograph image background foreground left right distance day night way kind type variety number air "
    "one corner center centre bottom set area close time crowd herd pile body inside outside something someone "
    "order it display thing things scene team base style half each lap shot midair mouth face head hand hands arm "
    "arms leg legs feet hair eyes paws vehicle vehicles furniture object objects item items food meal structure "
    "device toy container land stuff appliances".split())

MALE = set("man men boy boys guy guys male males gentleman father dad son he his him himself".split())
FEMALE = set("woman women girl girls lady ladies female females mother mom daughter she her herself bride".split())
OTHER_SEX = {"man": "woman", "men": "women", "boy": "girl", "boys": "girls", "guy": "woman", "guys": "women"}
OTHER_SEX |= {"woman": "man", "women": "men", "girl": "boy", "girls": "boys", "lady": "man", "ladies": "men"}
MINORS = set("child children kid kids baby babies toddler boy boys girl girls".split())
PEOPLE = MALE | FEMALE | MINORS | set(
    "person people player players skier skiers skateboarder skateboarders snowboarder snowboarders surfer surfers "
    "biker bikers cyclist cyclists rider riders adult adults family individual teenager teenagers worker workers "
    "chef officer batter catcher umpire pitcher skater skaters friend friends boarder runner runners performer "
    "climber band climbers swimmer soldier soldiers musician dancer dancers policeman spectators passengers youth "
    "hiker hikers team student students racer audience crowd couple".split())
ANIMALS = [set(group.split()) for group in (
    "dog dogs puppy puppies poodle terrier shepherd greyhound greyhounds retriever", "cat cats kitten kittens",
    "bird birds duck ducks geese goose seagull seagulls pigeon pigeons parrot", "horse horses pony ponies",
    "cow cows bull cattle calf", "sheep lamb lambs goat goats", "elephant elephants", "giraffe giraffes",
    "zebra zebras", "bear bears", "animal animals")]
ANIMATE = PEOPLE.union(*ANIMALS)
THINGS = [set(group.split()) for group in (  # what one may call another, in sets too small for the counts to tell
    "street road sidewalk path track trail pavement highway intersection lot runway way crosswalk city town ground",
    "field grass lawn yard meadow park dirt pasture hill court garden mountain slope forest woods ground trees tree",
    "shirt top jersey sweater jacket coat outfit suit uniform clothes clothing vest dress costume skirt gear swimsuit",
    "pants jeans shorts trousers", "hat cap helmet", "bike bicycle motorcycle scooter motorbike vehicle", "tree bush",
    "water ocean sea lake river pool wave waves surf beach shore sand stream puddle", "car van truck bus vehicle taxi",
    "building house store shop church restaurant structure hotel room station city", "couch sofa chair bench seat bed",
    "boat ship canoe kayak raft", "ball football basketball baseball frisbee toy game racket bat tennis", "desk table",
    "plate bowl dish tray cup glass mug", "food meal sandwich pizza cake dinner", "bag backpack suitcase luggage box",
    "rock rocks cliff mountain hill", "fence wall gate railing rail ramp", "kitchen room bathroom bedroom office",
    "skateboard board snowboard surfboard wave waves", "snow ice slope ski skis", "computer laptop screen television",
    "camera phone cellphone remote", "floor ground carpet rug", "trick stunt jump flip", "stick branch log pole wood")]
PLURALS = {"men": "man", "women": "woman", "people": "person", "children": "child", "geese": "goose", "skis": "ski",
           "leaves": "leaf", "knives": "knife", "feet": "foot", "teeth": "tooth", "cattle": "cow", "mice": "mouse"}
BOTH_WAYS = set("with next to near beside by alongside and or together along around against like".split())
BOTH_WAYS_VERBS = tuple("kiss hug fight wrestl talk danc meet rac fac embrac touch spar shak play match".split())
WEARING = {"in", "wearing", "with"}
ONE_WAY = set("in on under over above below behind into through inside onto off from at up down beneath".split())
# fmt: on
