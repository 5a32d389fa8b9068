// cache[rows[t]] = the keys and values of token t.

struct Params {
    tokens: u32,
    width: u32,
    stride: u32,
    first: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.tokens * p.width; i += 256u * groups.x) {
        let token = i / p.width;
        let column = i % p.width;
        cache[rows[token] * p.width + column] = qkv[token * p.stride + p.first + column];
    }
}
