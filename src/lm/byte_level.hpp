// The two halves of the ByteLevel pre-tokenizer: GPT-2's split into words, and its spelling of a
// byte as one printable character, in which vocabularies are written.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace clt {

/// A token as vocabularies spell it ("Ġthe") to its bytes (" the"); nothing when a character stands
/// for no byte.
std::optional<std::string> bytes_of_spelling(std::string_view spelling);
/// The spelling of one byte.
std::string spelling_of_byte(unsigned char byte);

/// Cuts text into words: contractions, an optional space with letters, digits or other signs, and
/// white space (a run before a word leaves its last character to it).
class WordSplitter {
  public:
    WordSplitter();
    WordSplitter(const WordSplitter&) = delete;
    WordSplitter& operator=(const WordSplitter&) = delete;
    ~WordSplitter();

    /// Length of the word that starts at text[at], at < text.size(); text is valid UTF-8.
    std::size_t next(std::string_view text, std::size_t at);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace clt
