// Byte-level BPE (the tokenizer of GPT-2 and its kin) from a Hugging Face tokenizer.json, with the
// ids that the `tokenizers` library gives. It splits added tokens out, cuts the rest into words by
// GPT-2's pattern and merges bytes by rank; it adds no special tokens of its own (post_processor is
// not applied). Source: Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "clt/base/types.hpp"

namespace clt {

class Tokenizer {
  public:
    /// Reads tokenizer.json. Throws UserError that names the file and the part that is missing,
    /// broken or not supported (another model than BPE, a normalizer, another pre-tokenizer).
    explicit Tokenizer(const std::string& path);
    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;
    ~Tokenizer();

    /// Appends the ids of `text` to `ids`. Bytes that are not UTF-8 count as U+FFFD, one for each
    /// maximal broken part (Python's errors="replace"). continued: the text goes on where an
    /// earlier call ended, so no prefix space is put before it; exact when text starts with white
    /// space and the earlier part ended without. Keeps a cache of words: one thread at a time.
    void encode(std::string_view text, std::vector<std::int32_t>& ids, bool continued = false);
    std::vector<std::int32_t> encode(std::string_view text);
    /// The text of the ids, special tokens included; broken UTF-8 becomes U+FFFD. Throws UserError
    /// when an id has no token.
    std::string decode(std::span<const std::int32_t> ids) const;

    /// Largest id + 1.
    Index vocabulary() const;
    std::optional<std::int32_t> id_of(std::string_view token) const;
    /// Ids of the added tokens marked special, ascending.
    const std::vector<std::int32_t>& special_ids() const;
    /// 16 hexadecimal digits of the file's bytes (FNV-1a), to tell tokenizers apart in metadata.
    const std::string& fingerprint() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace clt
