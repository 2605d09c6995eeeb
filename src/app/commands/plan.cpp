#include "clt/analyse/plan.hpp"

#include <fmt/format.h>

#include "app/command.hpp"
#include "app/job_file.hpp"
#include "clt/base/error.hpp"
#include "clt/base/log.hpp"

namespace clt {
namespace {

int run(const Arguments& arguments, const Communicator& world, Workers& /*workers*/) {
    const auto job = read_job<TrainJob>(
        load_job_source(arguments.positional(0), arguments.values("set"), world), "train");
    PlanOptions options;
    const auto take = [&](const char* option, Index& target) {
        if (const auto value = arguments.positive_integer(option)) target = *value;
    };
    take("ranks", options.ranks);
    take("ranks-per-host", options.ranks_per_host);
    take("layers", options.layers);
    take("d-model", options.d_model);
    options.gflops = arguments.positive_number("gflops").value_or(0);
    options.gbytes_per_s = arguments.positive_number("gbps").value_or(0);
    const auto take_bytes = [&](const char* option, Index& target) {
        constexpr double most = 1e9;  // an exabyte
        const auto gigabytes = arguments.positive_number(option);
        if (!gigabytes) return;
        if (*gigabytes > most)
            user_error("--{} {}: expected at most {:g} GB", option, *gigabytes, most);
        target = static_cast<Index>(*gigabytes * 1e9);
    };
    take_bytes("gpu-gb", options.device_bytes);
    take_bytes("host-gb", options.host_bytes);
    if (options.ranks == 0 && world.size() > 1) options.ranks = world.size();

    const Plan plan = make_plan(job, options, world);
    world.together([&] {
        if (world.rank() == 0) print_answer(to_text(plan));
    });
    check_memory(plan);
    return 0;
}

}  // namespace

Command plan_command() {
    return {"plan",
            "Says what a train job will cost: memory, communication and the floor of a step; "
            "refuses what cannot fit",
            {"JOB.toml"},
            {set_option(),
             {"ranks", "N", "Ranks of the run (default: those of [grid], or 1)"},
             {"ranks-per-host", "N", "Ranks on one host (default: all)"},
             {"layers", "N", "Layers, when there is no data set yet"},
             {"d-model", "N", "Width, when there is no data set yet"},
             {"host-gb", "GB", "Memory of a host (default: what this one has available)"},
             {"gpu-gb", "GB",
              fmt::format("cuda: memory of a GPU (default {:g}: an H100)", h100_bytes / 1e9)},
             {"gflops", "X",
              fmt::format("Matrix rate of a host, with cuda of a GPU, in GFLOP/s (default {:g}: 2 "
                          "cores with AVX-512; {:g}: an H100)",
                          Machine().gflops, h100().gflops)},
             {"gbps", "X",
              fmt::format("Its memory bandwidth in GB/s (default {:g}; {:g})",
                          Machine().gbytes_per_s, h100().gbytes_per_s)}},
            "train",
            run};
}

}  // namespace clt
