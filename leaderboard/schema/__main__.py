"""Write the schemas beside this file."""

from leaderboard.schema import FOLDER, MODELS, schema_text

for name in MODELS:
    (FOLDER / name).write_text(schema_text(name), encoding="utf-8")
    print(FOLDER / name)
