// Room for an active set, the same on every backend.
#pragma once

#include "clt/backend/active_set.hpp"

namespace clt {

/// The content is lost.
inline void resize_active_set(MemoryResource& memory, Index rows, Index tokens, Index entries,
                              ActiveSet& out) {
    out.rows = rows;
    out.tokens = tokens;
    out.entries = entries;
    out.row_start.reserve_discarding(memory, rows + 1, Purpose::active_set);
    // Entries vary from step to step: a little room saves growing again.
    const Index room = entries <= out.token.size() ? 0 : entries + entries / 8;
    out.token.reserve_discarding(memory, room, Purpose::active_set);
    out.pre.reserve_discarding(memory, room, Purpose::active_set);
    out.value.reserve_discarding(memory, room, Purpose::active_set);
    out.gradient.reserve_discarding(memory, room, Purpose::active_set);
}

}  // namespace clt
