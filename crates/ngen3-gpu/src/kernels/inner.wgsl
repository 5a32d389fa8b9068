// inner[token, head] = Σ out·dout over a head's columns: one of 8 groups of 32 threads for each.

struct Params {
    rows: u32,
    width: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % 32u;
    for (var first = group.x * 8u; first < p.rows; first += groups.x * 8u) {
        let row = first + thread / 32u;
        var sum = 0.0;
        if row < p.rows {
            for (var i = lane; i < p.width; i += 32u) {
                sum += x[row * p.width + i] * y[row * p.width + i];
            }
        }
        sums[thread] = sum;
        workgroupBarrier();
        for (var half = 16u; half > 0u; half /= 2u) {
            if lane < half {
                sums[thread] += sums[thread + half];
            }
            workgroupBarrier();
        }
        if lane == 0u && row < p.rows {
            out[row] = sums[thread];
        }
        workgroupBarrier();
    }
}
