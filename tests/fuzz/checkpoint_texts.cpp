// The text attributes of a checkpoint of format 2, and the trainer's state in it, as three parts.
#include "fuzz.hpp"
#include "train/checkpoint_format.hpp"
#include "train/run_state.hpp"

CLT_FUZZ_TARGET(bytes) {
    clt::StoredHeader stored;
    stored.texts.header = clt::fuzz::next_part(bytes);
    stored.texts.checksums = clt::fuzz::next_part(bytes);
    stored.texts.extra = bytes;
    clt::fuzz::refusable([&] { clt::header_from("step_1.h5", stored); });
    clt::fuzz::refusable([&] { clt::parse_run_state(stored.texts.extra, "step_1.h5"); });
}
