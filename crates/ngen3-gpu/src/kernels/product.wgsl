// c = alpha·a·b (+ bias), in tiles of TILE_M × TILE_N by 256 threads. Each thread holds a square of registers, ROW_QUADS·4 rows of
// COLUMN_QUADS·4 columns; both operands pass through shared memory, DEPTH of the inner dimension at a time.
//
// TRANS_A: a is [k, m], else [m, k]. TRANS_B: b is [n, k], else [k, n]. EPILOGUE: 0 sets c, 1 adds to c, 2 sets c to residual +
// dropout(product).

struct Params {
    m: u32,
    n: u32,
    k: u32,
    stride_a: u32,
    stride_b: u32,
    stride_c: u32,
    first_a: u32,
    first_b: u32,
    first_c: u32,
    alpha: f32,
    threshold: u32,
    scale: f32,
    key_0: u32,
    key_1: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<f32>;

const TILE_M: u32 = 64u * ROW_QUADS;
const TILE_N: u32 = 64u * COLUMN_QUADS;
// One quad more than a row has: threads that write down a column then write to different banks.
const STRIDE_M: u32 = TILE_M / 4u + 1u;
const STRIDE_N: u32 = TILE_N / 4u + 1u;

var<workgroup> tile_a: array<vec4<f32>, DEPTH * STRIDE_M>;
var<workgroup> tile_b: array<vec4<f32>, DEPTH * STRIDE_N>;

fn finish(row: u32, column: u32, product: f32) {
    if row >= p.m || column >= p.n {
        return;
    }
    var value = p.alpha * product;
    if BIAS == 1u {
        value += bias[column];
    }
    let place = p.first_c + row * p.stride_c + column;
    if EPILOGUE == 1u {
        value += c[place];
    } else if EPILOGUE == 2u {
        let index = row * p.n + column;
        value = residual[index] + value * dropout_factor(index, p.threshold, p.scale, p.key_0, p.key_1);
    }
    c[place] = value;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_0 = group.y * TILE_M;
    let column_0 = group.x * TILE_N;
    let tx = thread % 16u;
    let ty = thread / 16u;
    //@repeat R ROW_QUADS
    //@repeat I 4
    //@repeat C COLUMN_QUADS
    var sum_$R_$I_$C = vec4<f32>();
    //@end
    //@end
    //@end
    for (var k_0 = 0u; k_0 < p.k; k_0 += DEPTH) {
        for (var e = thread; e < TILE_M * DEPTH; e += 256u) {
            // Neighbouring threads read neighbouring elements.
            let i = select(e / DEPTH, e % TILE_M, TRANS_A == 1u);
            let k = select(e % DEPTH, e / TILE_M, TRANS_A == 1u);
            let row = row_0 + i;
            let at = k_0 + k;
            var value = 0.0;
            if row < p.m && at < p.k {
                value = a[p.first_a + select(row * p.stride_a + at, at * p.stride_a + row, TRANS_A == 1u)];
            }
            tile_a[k * STRIDE_M + i / 4u][i % 4u] = value;
        }
        for (var e = thread; e < TILE_N * DEPTH; e += 256u) {
            let j = select(e % TILE_N, e / DEPTH, TRANS_B == 1u);
            let k = select(e / TILE_N, e % DEPTH, TRANS_B == 1u);
            let column = column_0 + j;
            let at = k_0 + k;
            var value = 0.0;
            if column < p.n && at < p.k {
                value = b[p.first_b + select(at * p.stride_b + column, column * p.stride_b + at, TRANS_B == 1u)];
            }
            tile_b[k * STRIDE_N + j / 4u][j % 4u] = value;
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            //@repeat R ROW_QUADS
            let a_$R = tile_a[k * STRIDE_M + ty + 16u * $Ru];
            //@end
            //@repeat C COLUMN_QUADS
            let b_$C = tile_b[k * STRIDE_N + tx + 16u * $Cu];
            //@end
            //@repeat R ROW_QUADS
            //@repeat I 4
            //@repeat C COLUMN_QUADS
            sum_$R_$I_$C = fma(vec4<f32>(a_$R[$I]), b_$C, sum_$R_$I_$C);
            //@end
            //@end
            //@end
        }
        workgroupBarrier();
    }
    //@repeat R ROW_QUADS
    //@repeat I 4
    //@repeat C COLUMN_QUADS
    //@repeat J 4
    finish(row_0 + 64u * $Ru + 4u * ty + $Iu, column_0 + 64u * $Cu + 4u * tx + $Ju, sum_$R_$I_$C[$J]);
    //@end
    //@end
    //@end
    //@end
}
