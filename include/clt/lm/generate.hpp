// `clt generate`: text -> tokens -> forward passes -> activation data set.
#pragma once

#include <functional>

#include "clt/backend/backend.hpp"
#include "clt/base/stop.hpp"
#include "clt/comm/communicator.hpp"
#include "clt/lm/config.hpp"

namespace clt {

struct GenerateResult {
    bool finished = false;  // false: stopped on request, the same job goes on from here
    Index tokens = 0;       // in the data set
};

/// Writes the data set job.output, or goes on behind the last whole chunk of an earlier run. Which
/// token stands in which row depends on the text and the seed alone, not on the number of ranks:
/// chunk c is made of the rows [c, c + 1) * chunk_tokens of the text, in fixed batches, which are
/// dealt over the ranks. stop is asked before every batch; true on any rank ends the run in order,
/// and a chunk that is not whole is made anew by the next. Collective over world. Throws UserError
/// with one sentence.
GenerateResult generate(const GenerateJob& job, Backend& backend, const Communicator& world,
                        const std::function<bool()>& stop = stop_requested);

}  // namespace clt
