// relu and jumprelu on whole tiles, which the encoder's product has just left in the L2. A block
// takes a row (a feature) and reads it once, 16 bytes a thread.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/dense_activation.hpp"

#include "backend/cuda/elements.hpp"
#include "backend/elementwise.hpp"

namespace clt::cuda {
namespace {

constexpr int threads = 256;

// An activation with its threshold of one row.
struct Relu {
    __device__ Relu(const float*, Index, float) {}
    __device__ float operator()(float p) const { return p > 0 ? p : 0.0F; }
    __device__ bool is_kept(float p) const { return p > 0; }
};
struct JumpRelu {
    float theta;
    float half_window;

    __device__ JumpRelu(const float* log_threshold, Index row, float window)
        : theta(jumprelu_threshold(log_threshold[row])), half_window(window) {}
    __device__ float operator()(float p) const { return jumprelu(p, theta); }
    __device__ bool is_kept(float p) const {
        return p >= theta || in_window(p, theta, half_window);
    }
};

// body(col) for every pack of a row of n columns that is this thread's.
template <int width, class Body>
__device__ void for_packs_of_row(Index n, Body body) {
    for (Index col = Index{threadIdx.x} * width; col < n; col += Index{threads} * width) body(col);
}

// change(x, g) for every element of a row of x and the same one of its gradient.
template <int width, class Change>
__device__ void change_gradient_of_row(const DeviceMatrix<const float>& x,
                                       const DeviceMatrix<float>& gradient, Index row,
                                       Change change) {
    for_packs_of_row<width>(x.cols, [&](Index col) {
        const auto values = load<width>(x.data + row * x.stride + col);
        float* const at = gradient.data + row * gradient.stride + col;
        auto g = load<width>(at);
        for (int i = 0; i < width; ++i) change(values.lane[i], g.lane[i]);
        store(at, g);
    });
}

template <class Function, int width>
__global__ void __launch_bounds__(threads)
    activate_rows(const float* log_threshold, DeviceMatrix<const float> pre,
                  DeviceMatrix<float> value, Index* active, Index* fired) {
    const Index row = blockIdx.x;
    const Function function(log_threshold, row, 0);
    Index actives = 0;
    Index fires = 0;
    for_packs_of_row<width>(pre.cols, [&](Index col) {
        auto x = load<width>(pre.data + row * pre.stride + col);
        for (int i = 0; i < width; ++i) {
            x.lane[i] = function(x.lane[i]);
            actives += x.lane[i] != 0 ? 1 : 0;
            fires += x.lane[i] > fired_above ? 1 : 0;
        }
        store(value.data + row * value.stride + col, x);
    });
    if (active == nullptr) return;
    actives = block_sum<threads>(actives);
    fires = block_sum<threads>(fires);
    if (threadIdx.x == 0) {
        active[row] += actives;
        fired[row] += fires;
    }
}

// A block takes every gridDim.x-th row, so that few blocks meet at the counter.
template <class Function, int width>
__global__ void __launch_bounds__(threads)
    count_kept_of_rows(const float* log_threshold, float half_window, DeviceMatrix<const float> pre,
                       Index* count) {
    Index kept = 0;
    for (Index row = blockIdx.x; row < pre.rows; row += gridDim.x) {
        const Function function(log_threshold, row, half_window);
        for_packs_of_row<width>(pre.cols, [&](Index col) {
            const auto x = load<width>(pre.data + row * pre.stride + col);
            for (int i = 0; i < width; ++i) kept += function.is_kept(x.lane[i]) ? 1 : 0;
        });
    }
    kept = block_sum<threads>(kept);
    if (threadIdx.x == 0) atomic_add(count, kept);
}

template <int width>
__global__ void __launch_bounds__(threads)
    penalty_of_tile(float weight, float c, const float* norms, DeviceMatrix<const float> value,
                    DeviceMatrix<float> gradient, float* coefficient, double* partials) {
    const Index row = blockIdx.x;
    const float norm = norms[row];
    const float scaled_norm = c * norm;
    double sum = 0;
    double slope_sum = 0;
    change_gradient_of_row<width>(value, gradient, row, [&](float a, float& g) {
        const TanhPenalty entry = tanh_penalty(scaled_norm, a);
        sum += static_cast<double>(entry.value);
        slope_sum += static_cast<double>(entry.slope) * static_cast<double>(a);
        g += weight * scaled_norm * entry.slope;
    });
    sum = block_sum<threads>(sum);
    slope_sum = block_sum<threads>(slope_sum);
    if (threadIdx.x == 0) {
        partials[row] = sum;
        coefficient[row] = norm == 0 ? 0 : weight * c * static_cast<float>(slope_sum) / norm;
    }
}

template <int width>
__global__ void __launch_bounds__(threads)
    gradient_of_relu(DeviceMatrix<const float> pre, DeviceMatrix<float> gradient,
                     float* bias_gradient) {
    const Index row = blockIdx.x;
    double bias = 0;
    change_gradient_of_row<width>(pre, gradient, row, [&](float p, float& g) {
        g = p > 0 ? g : 0.0F;
        bias += static_cast<double>(g);
    });
    bias = block_sum<threads>(bias);
    if (threadIdx.x == 0) bias_gradient[row] = static_cast<float>(bias);
}

template <int width>
__global__ void __launch_bounds__(threads)
    gradient_of_jumprelu(const float* log_threshold, float half_window, float bandwidth,
                         DeviceMatrix<const float> pre, DeviceMatrix<float> gradient,
                         float* bias_gradient, float* threshold_gradient) {
    const Index row = blockIdx.x;
    const float theta = jumprelu_threshold(log_threshold[row]);
    double bias = 0;
    double threshold = 0;
    change_gradient_of_row<width>(pre, gradient, row, [&](float p, float& g) {
        if (in_window(p, theta, half_window))
            threshold += static_cast<double>(g * (-p / bandwidth));
        g = p >= theta ? g : 0.0F;
        bias += static_cast<double>(g);
    });
    bias = block_sum<threads>(bias);
    threshold = block_sum<threads>(threshold);
    if (threadIdx.x == 0) {
        bias_gradient[row] = static_cast<float>(bias);
        threshold_gradient[row] = theta * static_cast<float>(threshold);
    }
}

template <int width>
__global__ void __launch_bounds__(threads)
    pull_up_negative(float weight, DeviceMatrix<const float> pre, DeviceMatrix<float> gradient,
                     float* bias_gradient) {
    const Index row = blockIdx.x;
    Index negative = 0;
    change_gradient_of_row<width>(pre, gradient, row, [&](float p, float& g) {
        g -= p < 0 ? weight : 0.0F;
        negative += p < 0 ? 1 : 0;
    });
    if (bias_gradient == nullptr) return;
    negative = block_sum<threads>(negative);
    if (threadIdx.x == 0) bias_gradient[row] -= weight * static_cast<float>(negative);
}

// The row becomes 0, then the entries are put in: no other block writes to it.
template <int width>
__global__ void __launch_bounds__(threads)
    scatter_rows(const Index* row_start, const std::int32_t* token, const float* from,
                 DeviceMatrix<float> gradient) {
    const Index row = blockIdx.x;
    float* const to = gradient.data + row * gradient.stride;
    for_packs_of_row<width>(gradient.cols, [&](Index col) { store(to + col, Pack<width>{}); });
    __syncthreads();
    for (Index i = row_start[row] + threadIdx.x; i < row_start[row + 1]; i += threads)
        to[token[i]] = from[i];
}

dim3 block_a_row(Index rows) {
    return dim3(blocks_for(rows, 1));
}

// with(width) as a constant: 4 where the matrices allow it.
template <class With>
void with_width(bool packed, With with) {
    if (packed)
        with(std::integral_constant<int, 4>());
    else
        with(std::integral_constant<int, 1>());
}

}  // namespace

void activate(const CollectRule& rule, const float* log_threshold, DeviceMatrix<const float> pre,
              DeviceMatrix<float> value, Index* active, Index* fired, StreamHandle stream) {
    with_width(divides_into_4(pre) && divides_into_4(value), [&](auto width) {
        if (rule.activation == Activation::jumprelu)
            CLT_LAUNCH((activate_rows<JumpRelu, width>), block_a_row(pre.rows), dim3(threads),
                       stream, log_threshold, pre, value, active, fired);
        else
            CLT_LAUNCH((activate_rows<Relu, width>), block_a_row(pre.rows), dim3(threads), stream,
                       log_threshold, pre, value, active, fired);
    });
}

void count_kept(const CollectRule& rule, const float* log_threshold, DeviceMatrix<const float> pre,
                Index* count, StreamHandle stream) {
    const dim3 grid = block_a_row(std::min(pre.rows, most_partials));
    with_width(divides_into_4(pre), [&](auto width) {
        if (rule.activation == Activation::jumprelu)
            CLT_LAUNCH((count_kept_of_rows<JumpRelu, width>), grid, dim3(threads), stream,
                       log_threshold, rule.half_window, pre, count);
        else
            CLT_LAUNCH((count_kept_of_rows<Relu, width>), grid, dim3(threads), stream,
                       log_threshold, rule.half_window, pre, count);
    });
}

void sparsity_penalty_dense(float weight, float c, const float* norms,
                            DeviceMatrix<const float> value, DeviceMatrix<float> gradient,
                            float* coefficient, double* scratch, double* sum, StreamHandle stream) {
    with_width(divides_into_4(value) && divides_into_4(gradient), [&](auto width) {
        CLT_LAUNCH(penalty_of_tile<width>, block_a_row(value.rows), dim3(threads), stream, weight,
                   c, norms, value, gradient, coefficient, scratch);
    });
    add_partials(scratch, value.rows, static_cast<double>(weight), sum, stream);
}

void activation_gradient_dense(const CollectRule& rule, const float* log_threshold, float bandwidth,
                               DeviceMatrix<const float> pre, DeviceMatrix<float> gradient,
                               float* bias_gradient, float* threshold_gradient,
                               StreamHandle stream) {
    with_width(divides_into_4(pre) && divides_into_4(gradient), [&](auto width) {
        if (rule.activation == Activation::jumprelu)
            CLT_LAUNCH(gradient_of_jumprelu<width>, block_a_row(pre.rows), dim3(threads), stream,
                       log_threshold, rule.half_window, bandwidth, pre, gradient, bias_gradient,
                       threshold_gradient);
        else
            CLT_LAUNCH(gradient_of_relu<width>, block_a_row(pre.rows), dim3(threads), stream, pre,
                       gradient, bias_gradient);
    });
}

void preactivation_gradient(float weight, DeviceMatrix<const float> pre,
                            DeviceMatrix<float> gradient, float* bias_gradient,
                            StreamHandle stream) {
    with_width(divides_into_4(pre) && divides_into_4(gradient), [&](auto width) {
        CLT_LAUNCH(pull_up_negative<width>, block_a_row(pre.rows), dim3(threads), stream, weight,
                   pre, gradient, bias_gradient);
    });
}

void scatter_gradient(const Index* row_start, const std::int32_t* token, const float* from,
                      DeviceMatrix<float> gradient, StreamHandle stream) {
    with_width(divides_into_4(gradient), [&](auto width) {
        CLT_LAUNCH(scatter_rows<width>, block_a_row(gradient.rows), dim3(threads), stream,
                   row_start, token, from, gradient);
    });
}

}  // namespace clt::cuda
