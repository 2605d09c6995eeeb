#include "clt/analyse/evaluate.hpp"

#include "app/command.hpp"
#include "app/job_file.hpp"
#include "clt/comm/heartbeat.hpp"
#include "clt/io/file.hpp"

namespace clt {
namespace {

int run(const Arguments& arguments, const Communicator& world, Workers& workers) {
    auto job = read_job<EvaluateJob>(
        load_job_source(arguments.positional(0), arguments.values("set"), world), "evaluate");
    Heartbeat::set_timeout(static_cast<double>(job.run.timeout_s));
    const std::unique_ptr<Backend> backend =
        make_backend(job.job.backend, world, job.job.precision);
    evaluate(job, *backend, world, workers);
    write_resolved_job(job.job.output, tables_of(job), world);
    return 0;
}

}  // namespace

Command evaluate_command() {
    return {"evaluate",   "Judges a trained transcoder on a data set",
            {"JOB.toml"}, {set_option()},
            "evaluate",   run};
}

}  // namespace clt
