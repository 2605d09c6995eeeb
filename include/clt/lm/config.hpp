// A generate job: a language model over text gives an activation data set.
#pragma once

#include <string>
#include <vector>

#include "clt/base/fields.hpp"
#include "clt/base/types.hpp"
#include "clt/comm/config.hpp"

namespace clt {

struct LanguageModelConfig {
    std::string path;
    std::string name;
    std::string tap = "mlp_input";

    template <class V>
    void fields(V& v) {
        v("path", path, rule::required() | rule::path() | rule::execution(),
          "Hugging Face folder: config.json, model.safetensors or its shards, tokenizer.json");
        v("name", name, rule::any(), "Name in metadata.json; empty: the folder's name");
        v("tap", tap, rule::one_of({"mlp_input", "residual"}),
          "The transcoder's inputs: the MLP's input behind its layer norm, or the residual stream "
          "before it; targets are the MLP's output");
    }
};

struct TextConfig {
    std::vector<std::string> files;
    std::string split = "train";
    std::string column = "text";
    std::string encoding = "utf-8";
    std::string document_separator;
    std::string token_type = "uint16";
    Index separator_token = -1;

    template <class V>
    void fields(V& v) {
        v("files", files, rule::required() | rule::path(),
          "Read in this order: .txt and .jsonl, also with .gz or .zst behind; token ids in .npy or "
          ".bin");
        v("split", split, rule::any(), "Name of this part of the text, for metadata.json");
        v("column", column, rule::any(), ".jsonl: the key that holds the text");
        v("encoding", encoding, rule::any(),
          ".txt and .jsonl: utf-8, latin-1, utf-16 or another name that iconv knows; text that is "
          "not in it is an error");
        v("document_separator", document_separator, rule::any(),
          ".txt: what stands between documents, e.g. a blank line or <|endoftext|>; empty: a file "
          "is one document");
        v("token_type", token_type, rule::one_of({"uint16", "uint32"}),
          ".bin: type of a token id, little endian");
        v("separator_token", separator_token, rule::at_least(-1),
          ".npy and .bin: id that ends a document and is left out; -1: a file, or a row of a 2D "
          ".npy, is one document");
    }
};

struct ActivationsConfig {
    std::string dtype = "float32";
    std::string compression = "none";
    Index chunk_tokens = 65536;
    Index target_tokens = 0;
    Index context_size = 128;
    Index batch_tokens = 8192;
    bool prepend_bos = true;
    bool exclude_special_tokens = true;

    template <class V>
    void fields(V& v) {
        v("dtype", dtype, rule::one_of({"float32", "float16", "bfloat16"}), "Storage type");
        v("compression", compression, rule::one_of({"none", "gzip"}), "Filter of the chunks");
        v("chunk_tokens", chunk_tokens, rule::between(1, 2147483647),
          "Tokens of a chunk, the unit of shuffling, of memory and of resuming; all ranks together "
          "hold one: 8 * layers * width bytes a token");
        v("target_tokens", target_tokens, rule::at_least(0),
          "Tokens of the whole data set; 0: all there are");
        v("context_size", context_size, rule::between(2, 1e9),
          "Longest sequence, BOS included; longer documents are cut, shorter ones are not joined. "
          "The Python reference's pieces are one token shorter: 127 gives those of its 128");
        v("batch_tokens", batch_tokens, rule::positive(),
          "Tokens of a forward pass: whole sequences, at least one");
        v("prepend_bos", prepend_bos, rule::any(),
          "Every sequence begins with the model's bos_token_id");
        v("exclude_special_tokens", exclude_special_tokens, rule::any(),
          "Special tokens (also BOS) are seen by the model but not written");
    }
};

struct GenerateJob {
    JobConfig job;
    LanguageModelConfig model;
    TextConfig text;
    ActivationsConfig data;
    WatchConfig run;

    template <class V>
    void tables(V& v) {
        v("job", job, "What the job is; its output is the data set's folder");
        v("model", model, "The language model and where it is tapped");
        v("text", text, "What it reads");
        v("data", data, "The data set");
        v("run", run, "What the job does when something goes wrong");
    }
};

}  // namespace clt
