# The front door: config and index are checked, the stages are included, `all` asks for the report's page.
#
#   snakemake --cores N                     on this machine
#   snakemake --cores N --profile slurm     on a cluster
#
# profiles/default/config.yaml is read in either case; it says what makes a job run again.

from snakemake.utils import min_version

min_version("9.27")


# With --configfile that file alone is the study; Snakemake would merge it into this one, cohort by cohort.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/cohorts.smk"
include: "rules/dicom.smk"
include: "rules/preprocess.smk"
include: "rules/intensity.smk"
include: "rules/quality.smk"
include: "rules/export.smk"
include: "rules/embed.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/personalisation.smk"
include: "rules/privacy.smk"
include: "rules/transfer.smk"
include: "rules/site_effects.smk"
include: "rules/explain.smk"
include: "rules/figures.smk"


report: os.path.abspath("results/report/study.rst")


localrules:
    all,
    derivatives,


rule all:
    default_target: True
    input:
        "results/report/study.html",
        "results/evaluation/performance.tsv",
        "results/evaluation/efficiency.tsv",
        quality_pages(),
        figure_files(),


# Volumes for other software, no part of the study itself.
rule derivatives:
    input:
        expand("results/derivatives/{cohort}", cohort=COHORTS),


onsuccess:
    make_report()
