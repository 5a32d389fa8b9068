// AdamW (Loshchilov & Hutter 2019) on parameters that all decay or all do not. Zeroes the gradients. SKIP: 1 to do only that.

struct Params {
    first: u32,
    len: u32,
    clip: f32,
    beta1: f32,
    beta2: f32,
    // 1 − β₁ and 1 − β₂
    rest1: f32,
    rest2: f32,
    // lr/(1 − β₁ᵗ)
    rate: f32,
    // 1/√(1 − β₂ᵗ)
    correction: f32,
    eps: f32,
    // 1 − lr·decay
    keep: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> params: array<f32>;
@group(0) @binding(1) var<storage, read_write> grads: array<f32>;
@group(0) @binding(2) var<storage, read_write> exp_avg: array<f32>;
@group(0) @binding(3) var<storage, read_write> exp_avg_sq: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var n = id.x; n < p.len; n += 256u * groups.x) {
        let i = p.first + n;
        let g = grads[i] * p.clip;
        let m = p.beta1 * exp_avg[i] + p.rest1 * g;
        let v = p.beta2 * exp_avg_sq[i] + p.rest2 * g * g;
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        params[i] = params[i] * p.keep - p.rate * m / (sqrt(v) * p.correction + p.eps);
        grads[i] = 0.0;
    }
}
