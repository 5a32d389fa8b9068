// y = x·factor(index) (+ residual), where the factor is 0 or 1/(1 − p).

struct Params {
    len: u32,
    threshold: u32,
    scale: f32,
    key_0: u32,
    key_1: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> residual: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.len; i += 256u * groups.x) {
        var value = x[i] * dropout_factor(i, p.threshold, p.scale, p.key_0, p.key_1);
        if RESIDUAL == 1u {
            value += residual[i];
        }
        y[i] = value;
    }
}
