// tokenizer.json, then text through the tokenizer and back.
#include "lm/tokenizer.hpp"

#include "fuzz.hpp"

CLT_FUZZ_TARGET(bytes) {
    static const clt::fuzz::Folder folder;
    const std::string_view json = clt::fuzz::next_part(bytes);
    const std::string path = folder.write("tokenizer.json", json);
    clt::fuzz::refusable([&] {
        clt::Tokenizer tokenizer(path);
        const std::vector<std::int32_t> ids = tokenizer.encode(bytes);  // the part behind ---
        tokenizer.decode(ids);
        tokenizer.decode(tokenizer.special_ids());
        tokenizer.encode(tokenizer.decode(std::vector<std::int32_t>{0, 1, 2}));
    });
}
