// LayerNorm and RMSNorm of rows, one workgroup a row, and the gradient of their input.
//
// Row r begins at first + (r / heads)·stride + (r % heads)·width: a token's whole row, or one of its heads.
// RMS: 1 for RMSNorm, which has no mean and no β. BETA: 1 if there is a β. BACKWARD: 1 for the gradient. With BACKWARD, MODE is 0 to
// set dx, 1 to add to dx, 2 to read dy from dx and replace it.

struct Params {
    rows: u32,
    width: u32,
    heads: u32,
    stride: u32,
    first: u32,
    eps: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> gamma: array<f32>;
// β, or dy.
@group(0) @binding(2) var<storage, read> other: array<f32>;
// y, or dx.
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
// [rows, 2]: mean and 1/√(variance + ε).
@group(0) @binding(4) var<storage, read_write> stats: array<f32>;

var<workgroup> sums: array<vec2<f32>, 128>;

// Returns the sum of all threads' values.
fn total(thread: u32, value: vec2<f32>) -> vec2<f32> {
    workgroupBarrier();
    sums[thread] = value;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half /= 2u) {
        if thread < half {
            sums[thread] += sums[thread + half];
        }
        workgroupBarrier();
    }
    return sums[0];
}

fn dy_at(place: u32) -> f32 {
    if MODE == 2u {
        return out[place];
    }
    return other[place];
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let n = f32(p.width);
    for (var row = group.x; row < p.rows; row += groups.x) {
        let base = p.first + (row / p.heads) * p.stride + (row % p.heads) * p.width;
        if BACKWARD == 0u {
            var mean = 0.0;
            if RMS == 0u {
                var sum = 0.0;
                for (var i = thread; i < p.width; i += 128u) {
                    sum += x[base + i];
                }
                mean = total(thread, vec2<f32>(sum, 0.0)).x / n;
            }
            // Squares of differences, since those of values would cancel.
            var squares = 0.0;
            for (var i = thread; i < p.width; i += 128u) {
                let d = x[base + i] - mean;
                squares += d * d;
            }
            let rstd = 1.0 / sqrt(total(thread, vec2<f32>(squares, 0.0)).x / n + p.eps);
            for (var i = thread; i < p.width; i += 128u) {
                var y = (x[base + i] - mean) * rstd * gamma[i];
                if BETA == 1u {
                    y += other[i];
                }
                out[base + i] = y;
            }
            if thread == 0u {
                stats[2u * row] = mean;
                stats[2u * row + 1u] = rstd;
            }
        } else {
            let mean = stats[2u * row];
            let rstd = stats[2u * row + 1u];
            // Sums of g and g·x̂, for g = dy·γ.
            var sum = vec2<f32>();
            for (var i = thread; i < p.width; i += 128u) {
                let g = dy_at(base + i) * gamma[i];
                sum += vec2<f32>(g, g * (x[base + i] - mean) * rstd);
            }
            var means = total(thread, sum) / n;
            if RMS == 1u {
                means.x = 0.0;
            }
            for (var i = thread; i < p.width; i += 128u) {
                let g = dy_at(base + i) * gamma[i];
                let x_hat = (x[base + i] - mean) * rstd;
                var dx = rstd * (g - means.x - x_hat * means.y);
                if MODE == 1u {
                    dx += out[base + i];
                }
                out[base + i] = dx;
            }
        }
    }
}
