"""A population raster is cut by borders, drawn, and made into tables of cells and microcells."""

import json
import zipfile
from pathlib import Path

from recipes import Recipe, plain

YEAR = 2022
NAMES = {  # by what the scripts look for in the borders
    "countries": (
        "ne_10m_admin_0_countries_lakes",
        "ADMIN",
        ("Bermuda", "Gibraltar", "Luxembourg", "Netherlands", "New Zealand"),
    ),
    "provinces": ("ne_10m_admin_1_states_provinces", "iso_3166_2", ("CA-NB",)),
    "cities": ("ne_10m_urban_areas_landscan", "name_conve", ("Winnipeg", "Dublin2")),
}
PLACES = [(region, place) for region, (_, _, places) in NAMES.items() for place in places]


def prepare(checkout: Path) -> None:
    import geopandas
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from shapely.geometry import Point

    raw = checkout / "data" / "raw"
    raw.mkdir(parents=True)
    people = np.random.default_rng(4).poisson(40, (800, 1600)).astype("float64")
    with rasterio.open(
        raw / "GHS_POP_E2025_GLOBE_R2023A_4326_30ss_V1_0.tif", "w", driver="GTiff", height=800, width=1600, count=1,
        dtype="float64", crs="EPSG:4326", transform=from_origin(0, 80, 0.1, 0.1), nodata=-200,
    ) as file:  # fmt: skip
        file.write(people, 1)
    for turn, (name, column, places) in enumerate(NAMES.values()):
        shapes = [Point(12 + 25 * i, 70 - 22 * turn).buffer(3 + i) for i in range(len(places))]
        frame = geopandas.GeoDataFrame({column: list(places)}, geometry=shapes, crs="EPSG:4326")
        folder = raw / name
        frame.to_file(folder)
        with zipfile.ZipFile(raw / f"{name}.zip", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)
    rows = ["Location,Time,PopTotal"]
    for path in sorted((checkout / "configs").glob("*/*.json")):
        country = json.loads(path.read_text())["country"]
        rows += [f"{country},{YEAR},{1000 - 40 * age}" for age in range(21)]
    (raw / "WPP2024_PopulationByAge5GroupSex_Medium.csv").write_text("\n".join(dict.fromkeys(rows)) + "\n")


def arrays(path: Path) -> bytes:
    """What is in an archive, without the time at which it was written."""
    import numpy as np

    with np.load(path) as archive:
        return b"".join(name.encode() + archive[name].tobytes() for name in sorted(archive))


RECIPE = Recipe(
    repository="SABS-R3-Epidemiology/EpiGeoPop",
    commit="c564967d20457c234bc48bbf4a69bcd88ba023eb",
    about="geography: rasterio, geopandas, pandas and matplotlib in scripts; a job calls Snakemake itself",
    rules=("Snakefile", "scripts"),
    further=("configs",),
    prepare=prepare,
    targets=(
        "all",
        *(
            f"data/processed/{region}/{place}_{kind}"
            for region, place in PLACES
            for kind in ("microcells.csv", "pop_dist.json")
        ),
    ),
    compared={
        "data/processed/*/*.csv": plain,
        "data/processed/*/*.json": plain,
        "data/processed/*/*.npz": arrays,
    },
)
