// The steps of Muon that are no products (Jordan et al. 2024).
//
// STAGE 0: m = μ·m + (1 − μ)·g, u = μ·m + (1 − μ)·g, and g = 0; g is clipped. 1: u = u/max(‖u‖, ε), given sums of squares. 2: s = a·1 +
// b·gram + c·s, all [n, n], where s is gram². 3: p = p·keep − rate·u.

struct Params {
    first: u32,
    len: u32,
    // STAGE 1: sums of squares. 2: n.
    count: u32,
    // STAGE 0: clip, μ, 1 − μ. 1: ε. 2: a, b, c. 3: keep, rate.
    x: f32,
    y: f32,
    z: f32,
}

var<immediate> p: Params;
// STAGE 0: gradients. 1: sums of squares. 2: gram. 3: parameters.
@group(0) @binding(0) var<storage, read_write> a: array<f32>;
// STAGE 0: average.
@group(0) @binding(1) var<storage, read_write> b: array<f32>;
// u, or STAGE 2: s.
@group(0) @binding(2) var<storage, read_write> u: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    var norm = 0.0;
    if STAGE == 1u {
        for (var i = 0u; i < p.count; i++) {
            norm += a[i];
        }
        norm = max(sqrt(norm), p.x);
    }
    for (var i = id.x; i < p.len; i += 256u * groups.x) {
        let at = p.first + i;
        if STAGE == 0u {
            let g = a[at] * p.x;
            let average = p.y * b[at] + p.z * g;
            b[at] = average;
            u[i] = p.y * average + p.z * g;
            a[at] = 0.0;
        } else if STAGE == 1u {
            u[i] = u[i] / norm;
        } else if STAGE == 2u {
            u[i] = select(0.0, p.x, i % (p.count + 1u) == 0u) + p.y * a[i] + p.z * u[i];
        } else {
            a[at] = a[at] * p.x - p.y * u[i];
        }
    }
}
