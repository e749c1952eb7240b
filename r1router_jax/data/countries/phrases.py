"""User wordings for each fact.

`PHRASES[field]` is (nouns, held-out nouns, sentences, held-out sentences); {}
stands for the country, by name or as "the country in the picture".  Held-out
ones occur in `val` and `test` alone.
"""

PHRASES = {
  "capital": (
    ("capital", "capital city"),
    ("seat of government",),
    (
      "Which city is the capital of {}?",
      "From where is {} governed?",
      "Name the capital city of {}.",
      "{} has which capital?",
    ),
    (
      "Where does the government of {} sit?",
      "What city is {} run from?",
      "Which town serves as the capital of {}?",
    ),
  ),
  "government type": (
    ("government type", "form of government"),
    ("political system",),
    (
      "What kind of government does {} have?",
      "How is {} governed?",
      "Which form of government does {} have?",
      "What type of state is {}?",
    ),
    (
      "Under what political system does {} live?",
      "Is there a king or a republic in {}, or what else?",
      "What sort of regime does {} have?",
    ),
  ),
  "independence date": (
    ("independence date", "date of independence"),
    ("day of independence",),
    (
      "When did {} become independent?",
      "Since when is {} independent?",
      "On what date did {} gain independence?",
      "On which day did {} get its independence?",
    ),
    (
      "When was {} freed from foreign rule?",
      "Since which date has {} been a state of its own?",
      "When did {} achieve independence?",
    ),
  ),
  "national holiday": (
    ("national holiday", "national day"),
    ("main public holiday",),
    (
      "Which national holiday is celebrated in {}?",
      "What do people in {} celebrate as their national holiday?",
      "How is the national holiday of {} called?",
      "Which day is the national holiday of {}?",
    ),
    (
      "What holiday does the nation of {} observe?",
      "What is the name of the big national celebration in {}?",
      "Which holiday honours {}?",
    ),
  ),
  "voting age": (
    ("voting age", "minimum voting age"),
    ("age of suffrage",),
    (
      "How old must one be to vote in {}?",
      "From what age can people vote in {}?",
      "At which age may citizens of {} vote?",
      "How many years old are the youngest voters in {}?",
    ),
    (
      "At what age does suffrage begin in {}?",
      "How old are first-time voters in {}?",
      "When is one old enough for elections in {}?",
    ),
  ),
  "nationality": (
    ("nationality", "nationality adjective"),
    ("demonym",),
    (
      "What do you call a person from {}?",
      "How are people from {} called?",
      "What is the nationality of people from {}?",
      "What nationality does somebody from {} have?",
    ),
    (
      "What is the word for inhabitants of {}?",
      "How does one name a citizen of {}?",
      "Somebody born in {} is called what?",
    ),
  ),
  "currency": (
    ("currency", "official currency"),
    ("legal tender",),
    (
      "Which currency is used in {}?",
      "What money do people use in {}?",
      "How do you pay in {}?",
      "What is the money of {} called?",
    ),
    (
      "What do shops in {} get paid in?",
      "Which notes and coins circulate in {}?",
      "What cash do I need in {}?",
    ),
  ),
  "main crop": (
    ("main crop", "most important crop"),
    ("leading crop",),
    (
      "What do farmers in {} mainly grow?",
      "Which crop is grown most in {}?",
      "What is the first farm product of {}?",
      "Which main crop does {} have?",
    ),
    (
      "What grows on most fields of {}?",
      "Which plant matters most to farming in {}?",
      "What does agriculture in {} chiefly produce?",
    ),
  ),
  "number of administrative divisions": (
    ("number of administrative divisions", "number of provinces or regions"),
    ("count of first-level divisions",),
    (
      "How many administrative divisions does {} have?",
      "Into how many administrative divisions is {} divided?",
      "How many provinces or regions are there in {}?",
      "How many parts is {} divided into for administration?",
    ),
    (
      "Of how many districts or states does {} consist?",
      "How many first-level divisions make up {}?",
      "Count the administrative units of {}.",
    ),
  ),
  "highest point": (
    ("highest point", "highest mountain"),
    ("loftiest place",),
    (
      "What is the name of the highest peak in {}?",
      "Which mountain is the highest in {}?",
      "Where is the highest point of {}?",
      "Which place in {} lies highest?",
    ),
    (
      "On which summit is one highest in {}?",
      "What is the top of {} called?",
      "Which peak towers over {}?",
    ),
  ),
  "highest elevation": (
    ("highest elevation", "greatest height above the sea"),
    ("maximum altitude",),
    (
      "How high is the highest point of {}?",
      "How many metres high is the highest mountain in {}?",
      "What height does {} reach above the sea?",
      "How tall is the tallest peak in {}?",
    ),
    (
      "How many metres up can one climb in {}?",
      "How far above the sea does {} rise?",
      "What is the altitude of the top of {}?",
    ),
  ),
  "number of neighbours": (
    ("number of neighbours", "number of neighbouring countries"),
    ("count of bordering states",),
    (
      "How many countries border {}?",
      "How many neighbours does {} have?",
      "With how many countries does {} share a border?",
      "How many states touch {}?",
    ),
    (
      "How many nations surround {}?",
      "On how many countries does {} abut?",
      "How many different countries can one enter by land from {}?",
    ),
  ),
  "national anthem": (
    ("national anthem", "anthem"),
    ("national hymn",),
    (
      "What is the name of the anthem of {}?",
      "Which anthem does {} have?",
      "What song is the national anthem of {}?",
      "How is the national anthem of {} called?",
    ),
    (
      "Which hymn is played for {}?",
      "What do athletes from {} sing when they win?",
      "What is the title of the song of {}?",
    ),
  ),
  "national symbol": (
    ("national symbol", "symbol"),
    ("national emblem",),
    (
      "Which symbol stands for {}?",
      "What does {} use as its national symbol?",
      "Which national symbol does {} have?",
      "What animal or thing is the symbol of {}?",
    ),
    (
      "What is {} symbolised by?",
      "Which emblem represents {}?",
      "What creature or object stands for {}?",
    ),
  ),
  "calling code": (
    ("calling code", "telephone code"),
    ("dialling prefix",),
    (
      "Which calling code do I dial for {}?",
      "What number do I dial before calling {}?",
      "How do I reach {} by phone, which code?",
      "Which country code do telephones in {} have?",
    ),
    (
      "What is the prefix of phone numbers in {}?",
      "I want to ring somebody in {}. Which code is it?",
      "With what digits does a call to {} begin?",
    ),
  ),
  "internet domain": (
    ("internet domain", "internet country code"),
    ("top-level domain",),
    (
      "Which internet domain belongs to {}?",
      "How do web addresses in {} end?",
      "What internet country code does {} have?",
      "Which ending do websites of {} have?",
    ),
    (
      "What is the web suffix of {}?",
      "Which TLD stands for {}?",
      "What letters end the web pages of {}?",
    ),
  ),
  "time zone": (
    ("time zone", "standard time"),
    ("UTC offset",),
    (
      "Which time zone is {} in?",
      "What time zone does {} use?",
      "In which time zone lies {}?",
      "How far from UTC is the time in {}?",
    ),
    (
      "How are the clocks set in {}?",
      "By what time does {} live?",
      "What is the offset of the clocks in {}?",
    ),
  ),
  "main export good": (
    ("main export good", "most important export"),
    ("leading export good",),
    (
      "What does {} mainly export?",
      "Which good does {} export most?",
      "What is the first good that {} sells abroad?",
      "Which product is the main export of {}?",
    ),
    (
      "What does {} chiefly sell to the world?",
      "Which commodity leaves {} most?",
      "What do ships carry out of {} first of all?",
    ),
  ),
  "population": (
    ("population", "number of inhabitants"),
    ("head count",),
    (
      "How many people live in {}?",
      "How many inhabitants does {} have?",
      "How large is the population of {}?",
      "How many people are there in {}?",
    ),
    (
      "How populous is {}?",
      "By how many people is {} inhabited?",
      "How many residents does {} count?",
    ),
  ),
  "area": (
    ("area", "total area"),
    ("surface",),
    (
      "How large is {} in sq km?",
      "How many sq km does {} cover?",
      "How big is {}?",
      "What area does {} cover?",
    ),
    (
      "How much land and water does {} take up?",
      "How many square kilometres is {}?",
      "What is the extent of {}?",
    ),
  ),
  "gross domestic product": (
    ("gross domestic product", "total GDP"),
    ("economic output",),
    (
      "How large is the GDP of {}?",
      "How big is the economy of {}?",
      "How many billion dollars is the GDP of {}?",
      "What GDP does {} have?",
    ),
    (
      "How much does the whole economy of {} produce?",
      "What is {} worth as an economy, in billion dollars?",
      "How strong is the economy of {}?",
    ),
  ),
  "GDP per capita": (
    ("GDP per capita", "GDP per person"),
    ("output per head",),
    (
      "How large is the GDP per capita of {}?",
      "How rich is the average person in {}?",
      "How many dollars of GDP per capita does {} have?",
      "What GDP per head does {} have?",
    ),
    (
      "How much does each person in {} produce?",
      "How wealthy is one inhabitant of {} on average?",
      "What is the share of GDP per resident in {}?",
    ),
  ),
  "life expectancy": (
    ("life expectancy", "average life span"),
    ("length of life",),
    (
      "How long do people live in {}?",
      "How old do people get in {}?",
      "How many years can people in {} expect to live?",
      "What life expectancy do people in {} have?",
    ),
    (
      "To what age does one live in {}?",
      "How many years does a newborn in {} have ahead?",
      "How long is an average life in {}?",
    ),
  ),
  "median age": (
    ("median age", "middle age of the people"),
    ("age of the median person",),
    (
      "How old is the median person in {}?",
      "How old are people in {} by median?",
      "Half of the people in {} are younger than what age?",
      "What median age do people in {} have?",
    ),
    (
      "How young is {} by median?",
      "At what age does half of {} lie above and half below?",
      "What age splits the people of {} into two halves?",
    ),
  ),
  "birth rate": (
    ("birth rate", "rate of births"),
    ("natality",),
    (
      "How many births per 1,000 people are there in {}?",
      "How high is the birth rate of {}?",
      "How many children are born per 1,000 people in {}?",
      "What birth rate does {} have?",
    ),
    (
      "How often are babies born in {}?",
      "How fertile is {}, in births per 1,000?",
      "What is the yearly number of births per 1,000 in {}?",
    ),
  ),
  "number of airports": (
    ("number of airports", "airport count"),
    ("total of airfields",),
    (
      "How many airports does {} have?",
      "How many airports are there in {}?",
      "In how many places can planes land in {}?",
      "How many airports can one fly to in {}?",
    ),
    (
      "How many airfields serve {}?",
      "Count the airports of {}.",
      "How many landing sites are in {}?",
    ),
  ),
  "length of roadways": (
    ("length of roadways", "total length of roads"),
    ("extent of the road network",),
    (
      "How many km of roadways does {} have?",
      "How long are the roads of {}?",
      "How many km of roads are there in {}?",
      "What length do the roadways of {} have?",
    ),
    (
      "How far could I drive on all roads of {}?",
      "How extensive is the road network of {}?",
      "How many kilometres of streets has {} built?",
    ),
  ),
  "length of railways": (
    ("length of railways", "total length of railway lines"),
    ("extent of the rail network",),
    (
      "How many km of railways does {} have?",
      "How long are the railways of {}?",
      "How many km of rail are there in {}?",
      "What length do the railways of {} have?",
    ),
    (
      "How far could a train go on all tracks of {}?",
      "How extensive is the rail network of {}?",
      "How many kilometres of track has {} laid?",
    ),
  ),
  "length of coastline": (
    ("length of coastline", "coastline"),
    ("length of the shore",),
    (
      "How long is the coastline of {}?",
      "How many km of coastline does {} have?",
      "How long is the coast of {}?",
      "What length does the coast of {} have?",
    ),
    (
      "How far does the shore of {} run?",
      "How many kilometres of sea front has {}?",
      "How much of {} borders the sea, in km?",
    ),
  ),
  "number of internet users": (
    ("number of internet users", "number of people online"),
    ("total of web users",),
    (
      "How many internet users does {} have?",
      "How many people use the internet in {}?",
      "How many people in {} are online?",
      "How many users does the internet have in {}?",
    ),
    (
      "How many go on the web in {}?",
      "How many surfers of the net live in {}?",
      "For how many in {} is the internet within reach?",
    ),
  ),
  "number of mobile phones": (
    ("number of mobile phones", "number of cell phones"),
    ("total of mobiles",),
    (
      "How many mobile phones does {} have?",
      "How many cell phones are there in {}?",
      "How many mobile phones are used in {}?",
      "How many mobile phone lines does {} have?",
    ),
    (
      "How many handsets ring in {}?",
      "How many mobile subscriptions does {} count?",
      "How many phones do people carry about in {}?",
    ),
  ),
  "main export market": (
    ("main export market", "most important export market"),
    ("top export partner",),
    (
      "To which country does {} export most?",
      "Who buys most of the exports of {}?",
      "Where do most exports of {} go?",
      "Who is the main customer of {} abroad?",
    ),
    (
      "Which country takes the goods of {} first of all?",
      "Which foreign market matters most to {}?",
      "Where does {} sell most of its goods?",
    ),
  ),
  "main import source": (
    ("main import source", "most important import source"),
    ("top supplier",),
    (
      "From which country does {} import most?",
      "Who sells most to {}?",
      "Where do most imports of {} come from?",
      "Which country supplies {} most?",
    ),
    (
      "Where does {} buy most of its goods?",
      "Which country ships most goods into {}?",
      "On whose goods does {} depend most?",
    ),
  ),
  "largest ethnic group": (
    ("largest ethnic group", "biggest ethnic group"),
    ("most numerous people",),
    (
      "Which ethnic group is the largest in {}?",
      "To which ethnic group do most people in {} belong?",
      "Who are the largest group of people in {}?",
      "What ethnic group do most people of {} come from?",
    ),
    (
      "Which people forms the majority in {}?",
      "What is the leading ethnicity in {}?",
      "Who makes up most of {} by descent?",
    ),
  ),
  "main language": (
    ("main language", "most important language"),
    ("principal tongue",),
    (
      "Which language is spoken in {}?",
      "What language do people in {} speak?",
      "What do people speak in {}?",
      "Which main language does {} have?",
    ),
    (
      "Which tongue would I hear first in {}?",
      "What should I learn to talk with people in {}?",
      "In what language are things said in {}?",
    ),
  ),
  "main religion": (
    ("main religion", "largest religion"),
    ("predominant faith",),
    (
      "Which religion do most people in {} follow?",
      "What do most people in {} believe in?",
      "Which religion is the main one in {}?",
      "Which faith is the largest in {}?",
    ),
    (
      "To what creed do most in {} hold?",
      "How do people in {} mostly worship?",
      "Which belief prevails in {}?",
    ),
  ),
  "largest city": (
    ("largest city", "biggest city"),
    ("most populous city",),
    (
      "Which city is the largest in {}?",
      "Where do most city people of {} live?",
      "Name the biggest city of {}.",
      "Which city of {} has most people?",
    ),
    (
      "What is the chief metropolis of {}?",
      "Which urban area leads in {}?",
      "Which town of {} is the biggest?",
    ),
  ),
}
