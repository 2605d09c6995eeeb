#include "clt/lm/generate.hpp"

#include "app/command.hpp"
#include "app/job_file.hpp"
#include "clt/base/log.hpp"
#include "clt/base/stop.hpp"
#include "clt/comm/heartbeat.hpp"

namespace clt {
namespace {

int run(const Arguments& arguments, const Communicator& world, Workers& /*workers*/) {
    auto job = read_job<GenerateJob>(
        load_job_source(arguments.positional(0), arguments.values("set"), world), "generate");
    Heartbeat::set_timeout(static_cast<double>(job.run.timeout_s));
    const std::unique_ptr<Backend> backend =
        make_backend(job.job.backend, world, job.job.precision);
    const GenerateResult result = generate(job, *backend, world);
    write_resolved_job(job.job.output, tables_of(job), world);
    if (result.finished) return 0;
    log_info("stopped by a signal after {} tokens; the same job goes on from here", result.tokens);
    return exit_interrupted;
}

}  // namespace

Command generate_command() {
    return {"generate",
            "Runs a language model over text and writes its activations as a data set; goes on "
            "behind the last whole chunk of a run that was stopped",
            {"JOB.toml"},
            {set_option()},
            "generate",
            run};
}

}  // namespace clt
