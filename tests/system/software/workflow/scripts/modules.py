import os
import subprocess

greeting = subprocess.run(["greet"], capture_output=True, text=True, check=True).stdout
with open(snakemake.output[0], "w") as file:
    print(greeting.strip(), os.environ["GREET_HOME"], file=file)
