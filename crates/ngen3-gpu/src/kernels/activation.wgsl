// The MLP's activation and its gradient. KIND: 0 GELU with tanh, 1 exact GELU, 2 SwiGLU, whose rows hold the gate and then up.

struct Params {
    rows: u32,
    width: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> fc: array<f32>;
// Gradient of the output; not read in the forward pass.
@group(0) @binding(1) var<storage, read> dhidden: array<f32>;
// The output, or the gradient of fc.
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

fn sigmoid(x: f32) -> f32 {
    // exp overflows to infinity in no driver's way if it is not asked to.
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}

// erfc(x)·exp(x²) for x ≥ 0 times exp(−x²): Chebyshev, relative error below 1.2e-7 (Press et al., Numerical Recipes, 6.2).
fn erfc(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.5 * x);
    let series = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807
        + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    return t * exp(max(series - x * x, -80.0));
}

// gelu(x) and gelu'(x).
fn gelu(x: f32) -> vec2<f32> {
    if KIND == 0u {
        // 0.5·(1 + tanh u) = sigmoid(2u), u = √(2/π)·(x + 0.044715·x³)
        let square = min(x * x, 1e12);
        let half = sigmoid(2.0 * 0.7978845608 * x * (1.0 + 0.044715 * square));
        let du = 0.7978845608 * (1.0 + 3.0 * 0.044715 * square);
        return vec2<f32>(x * half, half + 2.0 * x * half * (1.0 - half) * du);
    }
    // x·Φ(x)
    let tail = 0.5 * erfc(min(abs(x), 1e4) * 0.7071067812);
    let phi = select(tail, 1.0 - tail, x > 0.0);
    let density = 0.3989422804 * exp(max(-0.5 * min(x * x, 1e6), -80.0));
    return vec2<f32>(x * phi, phi + x * density);
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.rows * p.width; i += 256u * groups.x) {
        if KIND == 2u {
            let gate_at = i / p.width * 2u * p.width + i % p.width;
            let gate = fc[gate_at];
            let up = fc[gate_at + p.width];
            let s = sigmoid(gate);
            if BACKWARD == 0u {
                out[i] = gate * s * up;
            } else {
                let dy = dhidden[i];
                out[gate_at] = dy * up * s * (1.0 + gate * (1.0 - s));
                out[gate_at + p.width] = dy * gate * s;
            }
        } else {
            let value = gelu(fc[i]);
            if BACKWARD == 0u {
                out[i] = value.x;
            } else {
                out[i] = dhidden[i] * value.y;
            }
        }
    }
}
