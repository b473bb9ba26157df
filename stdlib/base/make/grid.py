"""Yields (instruction, opening) pairs, the seeded grid of small writing tasks behind the base's training text.

The opening is put into the teacher's mouth: it keeps out "Sure, here is a story" and varies how texts begin.
Nothing here names the dish the recipes fine-tune on; `sample.py clean` drops every text that does.
"""

import random

NAMES = """Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Nora Oscar Paul Rosa Sam Tom Lucy Peter Alice
Martin Julia Max Ella George Helen Erik Sofia Nils Karin Olle Maja Lars Eva Jonas Lisa Adam Ruth""".split()
WHO = """a baker|a farmer|a young girl|a little boy|an old man|an old woman|a fisherman|a teacher|a gardener|a painter|a cook
a postman|a shepherd|a king|a small dog|a grey cat|a brown bear|a clever fox|a lonely wolf|a white rabbit|a wise owl|a tired horse
a little mouse|a shy hedgehog|a young sailor|a carpenter|a grandmother|a grandfather|two brothers|two sisters|two friends|a tailor
a night watchman|a bus driver|a doctor|a small bird|a proud rooster|a slow turtle|a hungry squirrel|a miller""".replace("\n", "|").split("|")
DOES = """finds|loses|builds|repairs|hides|buys|sells|paints|cleans|borrows|gives away|shares|carries home|draws|looks for
learns to use|is afraid of|dreams of|wins|breaks""".replace("\n", "|").split("|")
THING = """an old key|a red bicycle|a wooden boat|a silver spoon|a warm coat|a small box|a loaf of bread|a kite|a lost letter|a blue hat
a music box|a basket of apples|a map|a broken clock|a lamp|a garden gate|a golden ring|a bag of flour|a pair of boots|a big pot of soup
a kitchen table|a birthday cake|a jar of honey|a rope|a little bell|a snow sled|a drum|a bench|a letter from the king|a bowl of porridge
a fishing net|a wool blanket|a picture book|a bridge|a bucket of water|a tall ladder|a stone wall|a bird house""".replace("\n", "|").split("|")
WHERE = """in a small village|by the sea|in the forest|at the market|in a warm kitchen|on a farm|in a big city|on a snowy hill|at school
by the river|on an island|in a garden|at the train station|in an old house|in a bakery|on a winter night|on a rainy day|in the mountains
at a summer party|in the library|near a lake|in a castle|on the first day of spring|on a cold morning""".replace("\n", "|").split("|")
TURN = """helps a friend|learns to be patient|tells the truth|makes a mistake and fixes it|is kind to a stranger|learns to share
is surprised|finds the way home|works hard|makes a new friend|says sorry|laughs at the end|cooks dinner for everyone
has a good idea|is brave|is proud|is thankful""".replace("\n", "|").split("|")
DISH = """onion soup|tomato soup|potato soup|fish soup|chicken soup|pea soup|mashed potatoes|roast potatoes|fried potatoes|potato salad
pancakes|waffles|an omelette|scrambled eggs|boiled eggs|rice porridge|oatmeal|white bread|rye bread|cinnamon rolls|apple pie|apple sauce
a carrot cake|a sponge cake|butter cookies|roast chicken|baked fish|fried fish|salmon with lemon|beef stew|lamb stew|a pork roast
pork chops|sausages and cabbage|minced beef sauce|a brown gravy|a cream sauce|a white sauce|mushroom sauce|tomato sauce|pasta with cheese
fried rice|vegetable stew|bean stew|a green salad|pickled cucumber|berry jam|baked beans|cabbage rolls|a meat pie|beef patties|fried onions
a cheese sandwich|garlic bread|hot chocolate|a fruit salad|stuffed peppers|baked apples|roast carrots|boiled rice
a ham and egg pie|mushroom soup|a pot roast|cold milk soup|a berry pie""".replace("\n", "|").split("|")
FOOD = """onions|potatoes|carrots|garlic|butter|milk|cream|eggs|flour|bread|breadcrumbs|rice|pasta|beef|pork|chicken|fish|sausages|bacon
cheese|mushrooms|cabbage|apples|berries|honey|sugar|salt|black pepper|cinnamon|parsley|dill|vinegar|mustard|tomatoes|beans|peas|yeast dough
minced meat|stock|gravy|lemons|cucumbers|spinach|oats|fresh herbs|cold butter""".replace("\n", "|").split("|")
FOODTASK = ["how to keep {} fresh", "how to choose good {} in a shop", "how to cook with {}", "a common mistake with {}",
            "what {} taste like and how to use them", "how to store {}", "a good dinner with {}", "how to cut or prepare {}",
            "why cooks like {}", "how to save a dish with too much {}"]
KITCHEN = """how to fry in a pan|how to boil water and pasta|how to thicken a sauce|how to brown meat|how to rest meat before cutting it
how to chop an onion|how to bake bread at home|how to season a soup|how to make stock from bones|how to clean a frying pan
how to use an oven|how to freeze food|how to warm up leftovers|how to plan dinner for a week|how to cook for many guests
how to set a table|how to roll dough|how to shape small round buns|how to keep food warm|how to taste and add salt|how to save burnt food
how to sharpen a knife|how to whip cream|how to melt butter|how to cook on low heat|how to tell if meat is done
how to soak breadcrumbs in milk|how to serve a sauce|how to make a simple lunch|how to cook with children""".replace("\n", "|").split("|")
HOUSE = """clean a window|wash wool clothes|remove a coffee stain|fix a dripping tap|keep a house warm in winter|water plants|save electricity
polish shoes|dry wet boots|stop a door from squeaking|hang a picture|sweep a chimney safely|make a bed|clean an oven|get rid of ants
fold shirts|paint a wall|sew on a button|plant potatoes|grow tomatoes|pick apples|pack a suitcase|light a fire|clean a carpet|sort old papers
wash dishes by hand|keep a kitchen tidy|care for a cat|walk a dog|repair a chair|store winter clothes|rake leaves
shovel snow|save water|choose a lamp|tidy a desk""".replace("\n", "|").split("|")
EXPLAIN = """why the sky is blue|why it rains|why leaves fall in autumn|why we sleep|how bread rises|why ice floats|how birds fly|why the sea is salty
how bees make honey|why we have seasons|how plants grow|why onions make us cry|how snow forms|what wind is|why dogs bark
how fish breathe|what the moon does|why metal rusts|how milk becomes butter|how cheese is made|why the sun is hot|how a seed grows
why cats purr|what thunder is|how rivers begin|why hands get cold|how the heart works|why teeth need care
how soap cleans|why bread gets old|why meat turns brown in a pan|what fever is|why stars shine|how trees drink water""".replace("\n", "|").split("|")
WORKS = """a bicycle|a clock|a windmill|a refrigerator|a lock and key|a candle|a kettle|an oven|a bridge|a boat|a train|a lamp|a radio|a telephone
a pump|a mirror|a zipper|a pencil|a camera|a well|a wood stove|a scale|a compass|a sail|a lift|a washing machine|a thermometer|a bell""".replace("\n", "|").split("|")
LETTER = """to thank for a gift|to invite to dinner|to say sorry for being late|to tell about a holiday|to ask for a recipe|to wish a happy birthday
to tell about a new house|to ask for help in the garden|to tell about the weather and the farm|to say that a pet was found
to thank a neighbour|to plan a picnic|to ask about work|to tell about the first day at school""".replace("\n", "|").split("|")
TALK = """buying bread at a bakery|asking for the way to the station|cooking dinner together|choosing a birthday gift|the weather
a lost cat|what to eat for lunch|repairing a bicycle|a trip to the sea|ordering food in a restaurant|learning to swim|planting a garden
a book they both read|selling fish at the market|being late for work|cleaning the house|a new job|the first snow""".replace("\n", "|").split("|")
DESCRIBE = """a busy market|a quiet lake|an old kitchen|a winter morning|a small shop|a storm at sea|a summer evening|a harbour|a family dinner
a train journey|a mountain path|a bakery at dawn|a school yard|a garden in spring|an empty street at night|a farm in autumn
a fishing village|a cosy living room|a forest after rain|a holiday table full of food|a dog asleep by the fire|a snowy town
a grandmother in her kitchen|a restaurant at noon|a railway station|a river in the morning""".replace("\n", "|").split("|")
FACT = """Sweden|winter in the north|the Baltic Sea|coffee|potatoes in history|the history of bread|salt|wool|wood|sheep|cows|hens|pigs|horses
reindeer|herring|forests|islands|trains|Christmas food|midsummer|school lunches|markets|the history of the fork|tea|spices|pepper
rye|barley|butter in history|furniture|glass|iron|paper|ships|kings and queens|farms long ago|lighthouses|villages|restaurants""".replace("\n", "|").split("|")
STARTS = """One morning,|One day,|Last winter,|In the evening,|Every day,|Long ago,|It was|There was|When the|On Monday,|At first,|After school,
Once upon a time,|In spring,|Early one morning,|That night,|On a rainy afternoon,|Many years ago,|On the way home,|Before breakfast,""".replace("\n", "|").split("|")


def _letter(r, a, b):
    return (f"Write a letter from {a} to {b} {r.choice(LETTER)}.",
            r.choice([f"Dear {b}, thank you", f"Dear {b}, I", f"Dear {b}, how are you?", f"Dear {b}, last", f"Dear {b}, we", f"Dear {b},"]))


def _story(r, a, b):
    who, thing = r.choice(WHO), r.choice(THING)
    if r.random() < 0.5:
        who = f"{a}, {who}," if who.startswith("a") else f"{a} and {b}, {who},"
    ask = f"Write a story about {who} who {r.choice(DOES)} {thing} {r.choice(WHERE)} and {r.choice(TURN)}."
    return ask, r.choice([r.choice(STARTS), f"{a}", f"{a} was", f"{a} had", "The", f"{r.choice(['Little', 'Old', 'Young'])} {a}", r.choice(STARTS)])


def task(r):
    """Returns one task drawn with `r`; cooking is about a third, stories a third, the rest the other third."""
    a, b = r.sample(NAMES, 2)
    dish, food, kitchen = r.choice(DISH), r.choice(FOOD), r.choice(KITCHEN)
    pick = r.random()
    if pick < 0.33:
        return _story(r, a, b)
    if pick < 0.44:
        bare = dish.removeprefix("a ").removeprefix("an ")
        return (f"Explain how to cook {dish}.",
                r.choice([f"To make {dish},", "First,", f"For {dish},", "Heat", "Cut the", "Put the", "Start with", f"This {bare} is", "Mix",
                          f"{bare.capitalize()} is", "Wash the", "Boil", "Melt the butter", f"Good {bare}"]))
    if pick < 0.52:
        return (f"Write about {r.choice(FOODTASK).format(food)}.",
                r.choice([food.capitalize(), f"Fresh {food}", f"When you buy {food},", f"Keep {food}", "Always", "Never", "If", f"The best {food}", "Many cooks"]))
    if pick < 0.60:
        return (f"Give advice on {kitchen}.", r.choice(["First,", "Use", "Always", "Do not", "The best way", "If you", "Take", "A good cook", "Let the", "It is", "When you"]))
    if pick < 0.64:
        return (f"Write about a dinner with {dish} that {a} cooks for {b}.", r.choice([f"{a}", f"{b} came home", "The kitchen", "On Sunday,", "Tonight", f"\"{b}, dinner", f"{a} put"]))
    if pick < 0.70:
        house = r.choice(HOUSE)
        return f"Give advice on how to {house}.", r.choice([f"To {house},", "First,", "Use", "It is easy to", "Before you start,", "Take", "A simple way", "Do not"])
    if pick < 0.77:
        why = r.choice(EXPLAIN)
        return f"Explain simply {why}.", r.choice(["The", "This", "When", "Every", "People", "It is", "We", "Most", "In"])
    if pick < 0.80:
        works = r.choice(WORKS)
        return f"Explain simply how {works} works.", r.choice([works.capitalize(), f"When you use {works},", "Inside", "The"])
    if pick < 0.85:
        return _letter(r, a, b)
    if pick < 0.89:
        return (f"Write a conversation between {a} and {b} about {r.choice(TALK)}.",
                r.choice(["\"Good morning,\" said " + a + ".", "\"Do you", "\"I think", f"\"Hello, {b},\"", "\"Where", "\"Can you", "\"What", "\"We should"]))
    if pick < 0.95:
        return f"Describe {r.choice(DESCRIBE)}.", r.choice(["The", "It is", "Outside,", "A", "There is", "In the", "Behind", "Two", "On the"])
    what = r.choice(FACT)
    return f"Write true facts about {what}.", r.choice([what[0].upper() + what[1:], "In the", "People", "Many", "Today,", "For a long time,", "The"])


def tasks(seed, count):
    """Returns `count` tasks; the same seed gives the same tasks."""
    r = random.Random(seed)
    return [task(r) for _ in range(count)]
