"""Tables of Open-WikiTable, for tests of several modules."""


def split_lines(text):
  return [line.split("|") for line in text.splitlines()]


FIGHTS = split_lines("""\
Res_|Record|Opponent|Method_|Event|Location_
Win|2–0|Sergio Vieira|KO (punch)|Storm Samurai 6|Curitiba , Brazil
Win|1–0|Leandro Sousa|Decision|Storm Samurai 4|Curitiba , Brazil""")
STATIONS = split_lines("""\
Station|Extension|City_Neighborhood|Projected_opening|Park_and_ride|Funded_by_ST2_
Overlake Transit Center|East Link|Overlake|2021|Yes|Yes
SE Redmond|East Link|Redmond|Unknown|No|No""")

# Two of the tables as the published Step-GRPO rows show them.
TABLES = [
  dict(
    original_table_id="2-16335823-2",
    page_title="André Amade",
    section_title="Mixed martial arts record",
    caption="Mixed martial arts record",
    name="table_2_16335823_2",
    header=FIGHTS[0],
    rows=FIGHTS[1:],
  ),
  dict(
    original_table_id="1-22771048-4",
    page_title="List of Link Light Rail stations",
    section_title="Planned or proposed stations",
    caption="Planned or proposed stations",
    name="table_1_22771048_4",
    header=STATIONS[0],
    rows=STATIONS[1:],
  ),
]

FLATTENED = [
  "[Title]André Amade[Section title]Mixed martial arts record[Caption]Mixed "
  "martial arts record[Table name]table_2_16335823_2[Header]Res_[sep]Record"
  "[sep]Opponent[sep]Method_[sep]Event[sep]Location_[Rows][Row]Win[sep]2–0"
  "[sep]Sergio Vieira[sep]KO (punch)[sep]Storm Samurai 6[sep]Curitiba , "
  "Brazil[Row]Win[sep]1–0[sep]Leandro Sousa[sep]Decision[sep]Storm Samurai 4"
  "[sep]Curitiba , Brazil",
  "[Title]List of Link Light Rail stations[Section title]Planned or proposed "
  "stations[Caption]Planned or proposed stations[Table name]"
  "table_1_22771048_4[Header]Station[sep]Extension[sep]City_Neighborhood"
  "[sep]Projected_opening[sep]Park_and_ride[sep]Funded_by_ST2_[Rows][Row]"
  "Overlake Transit Center[sep]East Link[sep]Overlake[sep]2021[sep]Yes[sep]"
  "Yes[Row]SE Redmond[sep]East Link[sep]Redmond[sep]Unknown[sep]No[sep]No",
]


def by_columns(rows, **more):
  """Return rows as DataFrame.to_json writes them."""
  return {
    name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]
  } | more
