"""Subjects and kinds of text for the task `instructions`, by split. A subject is `phrase:words that an answer uses`."""

SUBJECTS = {
    "train": """keeping bees:bee;a lighthouse in winter:lighthouse;the first day at a new job:job,work;baking rye bread:bread,rye;a broken bicycle:bicycle,bike,cycl;learning to swim:swim;the town library:library,librar;growing tomatoes:tomato;a lost umbrella:umbrella;night trains:train;repairing old clocks:clock;a power cut:power,electric;the weekly market:market;moving to a new flat:flat,mov,apartment;a school play:play,school;saving water at home:water;choosing a winter coat:coat;street musicians:musician,music;a rainy camping trip:camp;cooking lentil soup:soup,lentil;the night sky:sky,star;an old wooden bridge:bridge;training a young dog:dog,pup;public buses:bus;making candles:candle;a visit to the dentist:dentist,teeth,dental;painting a fence:fence,paint;volcanoes:volcano;a chess club:chess;the history of paper:paper;sharing a kitchen with others:kitchen;lost luggage:luggage,bag,suitcase;planting a hedge:hedge,plant;a village football match:football,match,game;how rivers change their course:river;buying second-hand books:book;the smell of coffee:coffee;a snowed-in airport:airport,flight;writing a diary:diar,journal;solar panels on a roof:solar,panel;a neighbour who sings:neighbo,sing;the life of a beaver:beaver;knitting socks:sock,knit;a museum of machines:museum,machine;quitting sugar for a month:sugar;the invention of glasses:glass;a garden pond:pond;travelling with a baby:bab,travel;choir practice:choir,sing;working from home:home,work;walking in the fog:fog;a bakery that closes:baker;earthquakes:earthquake,quake;the price of rent:rent;cleaning a chimney:chimney;a long queue:queue,line,wait;ice skating:skat;the postal service:post,mail;setting up a tent:tent;honest advertising:advert,honest;a stray cat:cat;a fear of heights:height;sewing on a button:button,sew;the sound of rain:rain;a family recipe:recipe,family;wind turbines:turbine,wind;an escalator out of order:escalator;vegetable markets:vegetable,market;the desert at noon:desert;a debating contest:debat;how soap is made:soap;a borrowed ladder:ladder;early mornings:morning;bird feeders:bird,feeder;a ferry crossing:ferry,boat;packed lunches:lunch;map reading:map;a stamp collection:stamp;pottery classes:potter,clay;the moon landing:moon;city parks at dusk:park;a retirement party:retire,party;learning the violin:violin;food waste:food,waste;the tides:tide,sea;a charity run:run,charit;frozen pipes:pipe;homework:homework;a haunted hotel:hotel,haunt,ghost;the art of listening:listen;apple harvest:apple,harvest;a noisy fridge:fridge,refrigerator;cycling to work:cycl,bike,bicycle;the use of maps at sea:map,sea,chart;polite emails:email;a car that will not start:car;mountain huts:hut,mountain;the colour green:green;learning to drive:driv;plastic bags:plastic,bag;sleeping better:sleep;a friendship by letter:letter,friend;spiders:spider;a wedding on a budget:wedding,budget;volunteer firefighters:fire,volunteer;sunburn:sunburn,sun;folding paper boats:boat,paper;the village pub:pub;an unread contract:contract;goats:goat;how glass is recycled:glass,recycl;a surprise exam:exam,test;black holes:black hole,hole;speaking in public:speak,speech;the first snow:snow;keeping accounts:account;a new haircut:hair;fishing at dawn:fish;shared taxis:taxi,cab;learning sign language:sign;the office plant:plant;thunderstorms:thunder,storm;an outdoor cinema:cinema,film,movie;kites:kite;donating blood:blood,donat;a mountain rescue:rescue,mountain;tea from the garden:tea;the town clock:clock;budget travel:travel,budget,trip;mushroom picking:mushroom;repairing a roof:roof;slow internet:internet,connection;growing up as a twin:twin;ants:ant;parking in the city:park,car;woodworking:wood;an honest review:review,honest;weather forecasts:weather,forecast;the night shift:night,shift;rubber boots:boot,rubber;a garden for children:garden,child;migrating geese:geese,goose,bird;toothache:tooth,teeth;the class reunion:reunion,class;paper money:money,paper;a hidden beach:beach;a spelling mistake:spell,mistake;cheese making:cheese;carnival masks:mask,carnival;the last bus home:bus;a leaking tap:tap,leak,faucet;deep sea fish:fish,sea;board games:game;stage fright:stage,fright,fear;morning exercise:exercise;a compost heap:compost""",
    "dev": """a violin maker:violin;the city zoo:zoo;houseboats:boat;salt:salt;an electric scooter:scooter;sharing a garden:garden;a trip to the moon:moon;wolves:wolf,wolves;a cancelled concert:concert;brown bread:bread;mending jeans:jeans;traffic lights:traffic,light;a language course:language,course;olive trees:olive;the school canteen:canteen,school;glaciers:glacier,ice;a rescue dog:dog;bicycle lanes:lane,bicycle,bike;writing poems:poem,poet;the first telephone:phone;a slow waiter:waiter;rainbows:rainbow;sourdough:sourdough,dough;a lost key:key;swimming in lakes:lake,swim;noise at night:noise,nois""",
    "test": """a watchmaker's shop:watch,shop;river otters:otter;learning the piano:piano;the harbour at night:harbo;a flat tyre:tyre,tire;peppermint:mint;city trams:tram;a power tool:tool;growing potatoes:potato;the northern lights:light,aurora;dance lessons:danc;a missed deadline:deadline;cold soup:soup;tunnels:tunnel;a rooftop terrace:roof,terrace;the school bell:bell;penguins:penguin;a family car:car;painting portraits:portrait,paint;the invention of the zip:zip;a crowded lift:lift,elevator;mosquitoes:mosquito;running a marathon:marathon,run;an empty fridge:fridge,refrigerator;hot springs:spring;letters from abroad:letter;the corner shop:shop,store;a wool blanket:blanket,wool;moss:moss;carpooling:carpool,car,ride;comets:comet;a dusty attic:attic;juggling:juggl;pancakes:pancake;the fire brigade:fire;a book club:book;orchids:orchid;sandcastles:sand,castle;a late parcel:parcel,package;rope bridges:bridge,rope;the sense of smell:smell,scent;a house in the woods:house,wood;owls:owl;ice cream:ice cream,ice-cream;a windy day:wind;public fountains:fountain;learning to type:typ;a hospital visit:hospital;seashells:shell;the village school:school;jam without sugar:jam;night markets:market;a bus driver:bus,driver;lavender:lavender""",
}  # fmt: skip

TEXTS = {
    "train": (
        "Write a short text about {s}.", "Write a diary entry about {s}.", "Tell a friend in a letter about {s}.",
        "Explain {s} to a ten-year-old.", "Write a small scene that has to do with {s}.",
        "Draft a notice for a board in the hallway about {s}.", "Give advice to someone who is dealing with {s}.",
        "Describe {s} for people who have never heard of it.", "Write the opening of a story about {s}.",
        "What should a beginner know about {s}?", "Write a column for a local paper about {s}.",
        "Draft an email to a colleague about {s}.", "Write a speech of about a minute on {s}.",
        "Collect some thoughts on {s}.", "Write down a memory of {s}.", "Make a case for or against {s}.",
        "Write a page for a children's book about {s}.", "Report on {s} as a radio reporter would.",
    ),
    "dev": (
        "Compose a few lines on {s}.", "Write a leaflet on the subject of {s}.", "Tell me something worth knowing about {s}.",
        "Put together a post for a forum about {s}.", "Write a note to your future self about {s}.",
    ),
    "test": (
        "I need a short piece on {s}.", "Please produce a newsletter item about {s}.", "Could you write me a tale around {s}?",
        "Prepare a few remarks about {s} for a meeting.", "Write a postcard that mentions {s}.",
        "How would you introduce {s} to a visitor?", "Write a review of a documentary about {s}.",
        "Sum up what makes {s} interesting.", "Write a comment for an online discussion of {s}.",
        "Help me with a text for a website about {s}.",
    ),
}  # fmt: skip

QUESTIONS = {  # for the constraint `one_of`
    "train": ("Would most people enjoy a film about {s}?", "Is {s} a good subject for a school project?",
              "Should a newspaper print more about {s}?", "Does {s} matter in everyday life?"),
    "dev": ("Would you read a whole book about {s}?", "Is {s} easy to explain to a child?"),
    "test": ("Can one talk for an hour about {s}?", "Is {s} a fit topic for a dinner party?",
             "Do young people care about {s}?"),
}  # fmt: skip

PLAIN_WORDS = {  # to be used, counted, or set as the first word of a paragraph
    "train": "corner,silver,patience,window,slowly,promise,yellow,secret,pocket,village,careful,quiet,circle,finally,"
             "borrow,winter,habit,sudden,whisper,copper,neighbour,balance,useful,distance,memory,gentle",
    "dev": "harvest,simple,mirror,evening,tidy,courage,stone,wander",
    "test": "lantern,curious,border,meanwhile,velvet,stubborn,island,repair,cheerful,shadow,bargain,thread",
}  # fmt: skip
FORBIDDEN = {
    "train": "very,good,people,important,also,always,because,many,great,time,make,more,beautiful,often,new",
    "dev": "really,best,world,most,only",
    "test": "can,well,one,day,life,every,even,like",
}
STARTS = {
    "train": ("Once again", "To be honest", "Here is the plain truth", "Nobody told me", "Let us begin", "On a Tuesday",
              "My dear friends", "It started small"),
    "dev": ("Against all advice", "Some say", "Good evening"),
    "test": ("Without a warning", "Listen closely", "Years ago", "This is no joke"),
}  # fmt: skip
ENDS = {
    "train": ("That is all I know.", "See you on Sunday.", "What would you do?", "And so it stayed.", "Thank you for reading.",
              "More tomorrow.", "I would do it again.", "Case closed."),
    "dev": ("That was that.", "Who can say?", "Until next week."),
    "test": ("Nothing more to add.", "Are you ready?", "The rest is silence.", "With kind regards from the coast."),
}  # fmt: skip
CHOICES = {
    "train": (("I say yes.", "I say no.", "I cannot decide."), ("Agreed.", "Not agreed.", "Undecided.")),
    "dev": (("Certainly.", "Never.", "Perhaps."),),
    "test": (("The answer is positive.", "The answer is negative.", "The answer is open."),),
}
HEADINGS = {"train": ("Part", "Step", "Chapter", "Scene"), "dev": ("Stage",), "test": ("Episode", "Act")}
MARKS = {"train": ("======", "~~~~~~", "++++++"), "dev": ("######",), "test": ("//////", "::::::")}
