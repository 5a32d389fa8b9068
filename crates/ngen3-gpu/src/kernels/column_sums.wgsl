// Sums over rows: of dy, the gradient of a bias or of β; and of dy·x̂, the gradient of γ. STAGE 0 sums blocks of rows, STAGE 1 the blocks,
// and adds the result to the gradients. Rows are those of norm.wgsl.
//
// GAMMA: 1 if there are sums of dy·x̂. BETA: 1 if there are sums of dy.

const BLOCK: u32 = 64u;

struct Params {
    rows: u32,
    width: u32,
    heads: u32,
    stride: u32,
    first: u32,
}

var<immediate> p: Params;
// STAGE 0: dy, x, stats, partial sums. STAGE 1: partial sums (three times), dγ, dβ.
@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> out_beta: array<f32>;

var<workgroup> sums: array<vec2<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let blocks = (p.rows + BLOCK - 1u) / BLOCK;
    if STAGE == 0u {
        // 32 columns, 8 rows at a time.
        let column = group.x * 32u + thread % 32u;
        let lane = thread / 32u;
        var sum = vec2<f32>();
        if column < p.width {
            for (var r = lane; r < BLOCK; r += 8u) {
                let row = group.y * BLOCK + r;
                if row < p.rows {
                    let place = p.first + (row / p.heads) * p.stride + (row % p.heads) * p.width + column;
                    let g = dy[place];
                    var x_hat = 0.0;
                    if GAMMA == 1u {
                        x_hat = (x[place] - stats[2u * row]) * stats[2u * row + 1u];
                    }
                    sum += vec2<f32>(g * x_hat, g);
                }
            }
        }
        sums[thread] = sum;
        workgroupBarrier();
        for (var half = 128u; half >= 32u; half /= 2u) {
            if thread < half {
                sums[thread] += sums[thread + half];
            }
            workgroupBarrier();
        }
        if lane == 0u && column < p.width {
            let place = 2u * (group.y * p.width + column);
            out[place] = sums[thread].x;
            out[place + 1u] = sums[thread].y;
        }
    } else {
        let column = group.x * 256u + thread;
        if column < p.width {
            var sum = vec2<f32>();
            for (var block = 0u; block < blocks; block++) {
                let place = 2u * (block * p.width + column);
                sum += vec2<f32>(dy[place], dy[place + 1u]);
            }
            if GAMMA == 1u {
                out[column] += sum.x;
            }
            if BETA == 1u {
                out_beta[column] += sum.y;
            }
        }
    }
}
