// A TOML job of each kind, and its resolved text compared with itself and with the input.
#include "app/job_file.hpp"
#include "clt/analyse/config.hpp"
#include "clt/lm/config.hpp"
#include "clt/train/config.hpp"
#include "fuzz.hpp"

namespace {

template <class Job>
void read(const std::string& text, const char* kind) {
    clt::fuzz::refusable([&] {
        auto job = clt::read_job<Job>({"job.toml", text, {}}, kind);
        const std::string resolved = clt::resolved_text(clt::tables_of(job));
        clt::read_job<Job>({"job.resolved.toml", resolved, {}}, kind);
    });
}

}  // namespace

CLT_FUZZ_TARGET(bytes) {
    const std::string text(bytes);
    read<clt::TrainJob>(text, "train");
    read<clt::GenerateJob>(text, "generate");
    read<clt::EvaluateJob>(text, "evaluate");
    clt::fuzz::refusable([&] {
        clt::TrainJob defaults;
        const clt::JobTables tables = clt::tables_of(defaults);
        clt::difference(text, clt::resolved_text(tables), tables);
    });
}
