#!/usr/bin/env bash
# The paper's Table 2 and Figure 4 in small, on 20,509 passages of Wikipedia, from realm-tiny: docs/results.md has what
# came out. About 2 hours of one CPU core. Started again, it goes on. Needs
#   LEADS      articles, jsonl.xz with id, title and text
#   QUESTIONS  a directory with jsonl files of TriviaQA, NaturalQuestions, WebQuestions and EfficientQA
#   RUNS       where to write (runs/table2)
#   SEEDS      ("0 1 2")
# To try it through in minutes: a file of a few hundred articles, NUM_STEPS=2 (the config's) and SEEDS=0.
set -euo pipefail
: "${LEADS:?set LEADS to a jsonl.xz file of articles}" "${QUESTIONS:?set QUESTIONS to a directory}"
LEADS="$(realpath "$LEADS")" QUESTIONS="$(realpath "$QUESTIONS")"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment "[dev]"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
runs="$(realpath -m "${RUNS:-runs/table2}")"
read -ra seeds <<< "${SEEDS:-0 1 2}"
mkdir -p "$runs"
export JAX_COMPILATION_CACHE_DIR="$runs/.compiled" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5

corpus() {  # NAME FLAGS...: unless it is there
  [[ -e "$runs/$1" ]] || realm build_corpus --output="$runs/$1" --vocab=realm-tiny "${@:2}"
}

corpus text --input="$LEADS" --passage_length=64
if [[ ! -e "$runs/dev.jsonl" ]]; then
  python launch/table2_data.py "$runs" --store "$runs/text" --leads "$LEADS" \
    --questions "$QUESTIONS"/{triviaqa.train,triviaqa.dev,nq.train,nq.dev,webquestions.train,efficientqa.dev}.jsonl
fi
corpus corpus --input="$runs/articles.jsonl" --passage_length=64
corpus reading_text --input="$LEADS" --passage_length=112 --num_passages=60000

# What all rows start from: realm-tiny's retriever, and its reader after a warm start.
[[ -e "$runs/start" ]] || realm convert --input=realm-tiny --to=realm --corpus="$runs/corpus" --output="$runs/start"
realm refresh_index --workdir="$runs/start" --once --quiet
realm train --config=configs/table2.py:reading --config.corpus="$runs/reading_text" --config.init=realm-tiny --workdir="$runs/reading" \
  ${NUM_STEPS:+"--config.num_steps=$NUM_STEPS"}

python launch/table2.py "$runs" --seeds "${seeds[@]}" ${NUM_STEPS:+--num_steps="$NUM_STEPS"}
python docs/plot_table2.py "$runs" "$runs/utility.svg" # docs/utility.svg is such a one
