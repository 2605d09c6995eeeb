// The text attributes of a checkpoint: header, checksums and the trainer's state, as three parts.
#include "clt/train/run_state.hpp"
#include "fuzz.hpp"
#include "train/checkpoint_format.hpp"

CLT_FUZZ_TARGET(bytes) {
    clt::CheckpointTexts texts;
    texts.header = clt::fuzz::next_part(bytes);
    texts.checksums = clt::fuzz::next_part(bytes);
    texts.extra = bytes;
    clt::fuzz::refusable([&] { clt::info_from("step_1.h5", texts); });
    clt::fuzz::refusable([&] { clt::checksums_from("step_1.h5", texts); });
    clt::fuzz::refusable([&] { clt::parse_run_state(texts.extra, "step_1.h5"); });
}
