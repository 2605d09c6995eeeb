#include "golden/golden_case.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "clt/io/hdf5.hpp"

namespace clt::reference {
namespace {

using Json = nlohmann::json;

Json config_of(const H5File& file) {
    const auto text = file.read_text("config");
    if (!text) user_error("{}: no attribute config", file.path());
    return Json::parse(*text);
}

/// The entry, or the default of the reference's own TrainingConfig and CLTConfig.
template <class T>
T value_or(const Json& config, const char* key, T otherwise) {
    const auto found = config.find(key);
    return found == config.end() || found->is_null() ? otherwise : found->get<T>();
}

bool is_set(const Json& config, const char* key) {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null()) return false;
    if (found->is_boolean()) return found->get<bool>();
    if (found->is_number()) return found->get<double>() != 0;
    return *found != "none";
}

Vector read(const H5File& file, const std::string& name) {
    const H5Dataset dataset = file.dataset(name);
    if (dataset.type() != H5Type::float32) user_error("{}: {} is not float32", file.path(), name);
    std::vector<float> values(static_cast<std::size_t>(dataset.rows() * dataset.cols()));
    dataset.read({0, dataset.rows()}, values.data());
    return {values.begin(), values.end()};
}

/// Layer by layer [B, n] becomes [B, L, n].
Vector read_layers(const H5File& file, const Shape& shape, const std::string& before,
                   const std::string& after) {
    std::vector<Vector> layers;
    for (Index l = 0; l < shape.layers; ++l)
        layers.push_back(read(file, fmt::format("{}layer_{}{}", before, l, after)));
    const auto tokens =
        static_cast<std::size_t>(file.dataset(fmt::format("{}layer_0{}", before, after)).rows());
    const std::size_t width = layers[0].size() / tokens;
    Vector out;
    for (std::size_t b = 0; b < tokens; ++b)
        for (const Vector& layer : layers)
            out.insert(out.end(), layer.begin() + static_cast<std::ptrdiff_t>(b * width),
                       layer.begin() + static_cast<std::ptrdiff_t>((b + 1) * width));
    return out;
}

/// The reference's arrays of one group. It stores decoders as [d, F] and has a bias a (source,
/// target) pair: summed up for values; a gradient is the same for all of them, so one stands for
/// all.
Parameters read_parameters(const H5File& file, const Shape& shape, bool thresholds,
                           const std::string& group, bool sum_biases) {
    Parameters out(shape, thresholds);
    const Index d = shape.d_model;
    for (Index s = 0; s < shape.layers; ++s) {
        const std::string encoder = fmt::format("{}/encoder_module.encoders.{}.", group, s);
        out.encoder[static_cast<std::size_t>(s)] = read(file, encoder + "weight");
        out.encoder_bias[static_cast<std::size_t>(s)] = read(file, encoder + "bias_param");
        for (Index t = s; t < shape.layers; ++t) {
            const std::string decoder =
                fmt::format("{}/decoder_module.decoders.{}->{}.", group, s, t);
            const Vector weight = read(file, decoder + "weight");
            for (Index f = 0; f < shape.features; ++f)
                for (Index i = 0; i < d; ++i)
                    out.decoder[static_cast<std::size_t>(s)][static_cast<std::size_t>(
                        f * shape.decoder_width(s) + (t - s) * d + i)] =
                        weight[static_cast<std::size_t>(i * shape.features + f)];
            const Vector bias = read(file, decoder + "bias_param");
            for (Index i = 0; i < d; ++i) {
                double& sum = out.decoder_bias[static_cast<std::size_t>(t * d + i)];
                const double pair = bias[static_cast<std::size_t>(i)];
                sum = sum_biases ? sum + pair : pair;
            }
        }
    }
    if (thresholds) {
        const Vector all = read(file, group + "/theta_manager.log_threshold");
        for (std::size_t i = 0; i < all.size(); ++i)
            out.log_threshold[i / static_cast<std::size_t>(shape.features)]
                             [i % static_cast<std::size_t>(shape.features)] = all[i];
    }
    return out;
}

/// lambda(t) of spec 6.2.
double lambda_at(const Json& config, double t) {
    if (config.at("activation_fn") == "batchtopk" &&
        !value_or(config, "apply_sparsity_penalty_to_batchtopk", true))
        return 0;
    const auto lambda = value_or(config, "sparsity_lambda", 1e-3);
    const double steps = config.at("training_steps");
    double part = t / steps;
    if (value_or<std::string>(config, "sparsity_lambda_schedule", "linear") == "delayed_linear") {
        const double delay = value_or(config, "sparsity_lambda_delay_frac", 0.1) * steps;
        part = t < delay ? 0 : (t - delay) / (steps - delay);
    }
    const double now = lambda * std::min(1.0, part);
    return now < 1e-9 ? 0 : now;
}

RunSetup setup_of(const H5File& file, const Json& config) {
    RunSetup setup;
    setup.shape = {config.at("num_layers"), config.at("d_model"), config.at("num_features")};
    ModelConfig& model = setup.model;
    model.features = setup.shape.features;
    model.activation = config.at("activation_fn");
    if (model.activation == "batchtopk") model.k = config.at("batchtopk_k");
    if (model.activation == "topk") model.k = config.at("topk_k");
    model.ranking = "zscore";
    model.keep_negative = true;
    model.threshold = value_or(config, "jumprelu_threshold", 0.03);

    setup.loss.sparsity = value_or(config, "sparsity_lambda", 1e-3);
    setup.loss.sparsity_scale = value_or(config, "sparsity_c", 1.0);
    setup.loss.sparsity_reduction = "sum";
    setup.loss.preactivation = value_or(config, "preactivation_coef", 3e-6);

    OptimizerConfig& optimizer = setup.optimizer;
    optimizer.kind = value_or<std::string>(config, "optimizer", "adamw");
    optimizer.beta1 = value_or(config, "optimizer_beta1", 0.9);
    optimizer.beta2 = value_or(config, "optimizer_beta2", 0.999);
    optimizer.gradient_clip = value_or(config, "gradient_clip_val", 0.0);
    optimizer.reference_biases = true;

    const auto normalization = value_or<std::string>(config, "normalization_method", "none");
    if (normalization == "mean_std") {
        for (Index l = 0; l < setup.shape.layers; ++l) {
            const Vector scale = read(file, fmt::format("norm/layer_{}/std_tg", l));
            setup.error_scale.insert(setup.error_scale.end(), scale.begin(), scale.end());
        }
    } else if (normalization == "sqrt_d_model") {
        const auto d = static_cast<double>(setup.shape.d_model);
        setup.error_scale = rounded(Vector(
            static_cast<std::size_t>(setup.shape.layers * setup.shape.d_model), 1 / std::sqrt(d)));
    }
    return setup;
}

}  // namespace

std::string missing_feature(const std::string& path) {
    const Json config = config_of(H5File::open(path));
    const auto kind = value_or<std::string>(config, "kind", "train");
    if (kind != "train" && kind != "metrics") return fmt::format("kind \"{}\"", kind);
    if (is_set(config, "decoder_tying")) return "tied decoders";
    if (is_set(config, "skip_connection")) return "skip connection";
    if (is_set(config, "aux_loss_factor")) return "auxiliary loss";
    if (value_or<std::string>(config, "topk_mode", "global") != "global") return "top-k by layer";
    return {};
}

bool is_metrics(const std::string& path) {
    return value_or<std::string>(config_of(H5File::open(path)), "kind", "train") == "metrics";
}

GoldenCase read_golden(const std::string& path) {
    const H5File file = H5File::open(path);
    const Json config = config_of(file);
    RunSetup setup = setup_of(file, config);
    const Shape shape = setup.shape;
    const bool thresholds = setup.thresholds();
    GoldenCase out{.path = path,
                   .setup = std::move(setup),
                   .learning_rate = 0,
                   .steps = {},
                   .initial = read_parameters(file, shape, thresholds, "init", true),
                   .metrics = {},
                   .gradient = {},
                   .trained = {},
                   .activation = {},
                   .reconstruction = {}};
    const auto add_step = [&](Index i) {
        GoldenStep step;
        const std::string batch = fmt::format("batch_{}/", i);
        step.batch.tokens = file.dataset(batch + "layer_0/inputs").rows();
        step.batch.inputs = read_layers(file, shape, batch, "/inputs");
        step.batch.targets = read_layers(file, shape, batch, "/targets");
        out.setup.max_tokens = std::max(out.setup.max_tokens, step.batch.tokens);
        out.steps.push_back(std::move(step));
    };
    if (value_or<std::string>(config, "kind", "train") == "metrics") {
        out.metrics = Json::parse(file.read_text("metrics").value());
        add_step(0);
        return out;
    }
    out.learning_rate = config.at("learning_rate");
    const Json losses = Json::parse(file.read_text("losses").value());
    for (Index i = 0; i < static_cast<Index>(losses.size()); ++i) {
        add_step(i);
        GoldenStep& step = out.steps.back();
        const Json& loss = losses[static_cast<std::size_t>(i)];
        step.lambda =
            lambda_at(config, config.at("first_step").get<double>() + static_cast<double>(i));
        step.losses.total = loss.at("total");
        step.losses.reconstruction = loss.at("reconstruction");
        step.losses.sparsity = loss.at("sparsity");
        step.losses.preactivation = loss.at("preactivation");
        step.gradient_norm = value_or(loss, "grad_norm_before_clip", -1.0);
    }
    out.gradient = read_parameters(file, shape, thresholds, "grad", false);
    out.trained = read_parameters(file, shape, thresholds, "final", true);
    out.activation = read_layers(file, shape, "activations/", "");
    out.reconstruction = read_layers(file, shape, "reconstruction/", "");
    return out;
}

std::vector<std::string> golden_files() {
    const char* folder = std::getenv("CLT_GOLDEN_DIR");
    const std::filesystem::path root =
        folder != nullptr ? folder : CLT_SOURCE_DIR "/tests/golden/data";
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(root))
        if (entry.path().extension() == ".h5") files.push_back(entry.path().string());
    std::sort(files.begin(), files.end());
    return files;
}

}  // namespace clt::reference
