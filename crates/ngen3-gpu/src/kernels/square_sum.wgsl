// Σ x² of each workgroup's elements, which all have the same places at every call.

struct Params {
    first: u32,
    len: u32,
    at: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    var sum = 0.0;
    for (var i = group.x * 256u + thread; i < p.len; i += 256u * groups.x) {
        let value = x[p.first + i];
        sum += value * value;
    }
    sums[thread] = sum;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if thread < half {
            sums[thread] += sums[thread + half];
        }
        workgroupBarrier();
    }
    if thread == 0u {
        partials[p.at + group.x] = sums[0];
    }
}
