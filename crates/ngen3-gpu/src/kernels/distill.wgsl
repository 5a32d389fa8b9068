// A student's divergence from its teacher, of logits that come in chunks of the vocabulary, and the gradient of both terms of the loss.
// One workgroup a row. With z = logits/T, p the teacher's probabilities and q the student's:
//
// KIND 0: D = Σ p·ln(p/q), ∂D/∂z = q − p.   1: D = Σ q·ln(q/p), ∂D/∂z = q·(ln(q/p) − D).
// 2: D = KL(p ‖ m)/2 + KL(q ‖ m)/2 with m = (p + q)/2, ∂D/∂z = q·(ln(q/m) − KL(q ‖ m))/2.
// 3: KIND 0 with all tokens but the teacher's k most likely ones taken as one, of probability p' and q':
//    D = Σ p·ln(p/q) over the k + p'·ln(p'/q'), ∂D/∂z = q − p at the k, q·(1 − p'/q') elsewhere.
//
// STAGE: 0 adds a chunk to each row's sums; FIRST is 1 for the first chunk. 1 turns the sums into losses, T²·D. 2 replaces the
// student's logits by the gradient of soft·T²·D + hard·cross entropy.

struct Params {
    rows: u32,
    width: u32,
    first: u32,
    k: u32,
    temperature: f32,
    hard: f32,
    soft: f32,
}

const IGNORE: u32 = 0xFFFFFFFFu;
// Total probability of the other tokens above which they count; less is rounding error of the k.
const NOTHING: f32 = 1e-6;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
// The teacher's logits; KIND 3: [rows, k] log probabilities.
@group(0) @binding(1) var<storage, read> teacher: array<f32>;
// KIND 3: [rows, k] tokens.
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> targets: array<u32>;
// [rows, 3], of loss.wgsl: the student's of its logits, and of those divided by the temperature; the teacher's, divided.
@group(0) @binding(4) var<storage, read> plain: array<f32>;
@group(0) @binding(5) var<storage, read> student_stats: array<f32>;
@group(0) @binding(6) var<storage, read> teacher_stats: array<f32>;
// [rows, 2]: KIND 0, 1: D. 2: KL(p ‖ m), KL(q ‖ m). 3: Σ p·ln(p/q), Σ q.
@group(0) @binding(7) var<storage, read_write> sums: array<f32>;
// STAGE 1: [rows] losses. STAGE 2, KIND 3: [rows, k].
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

var<workgroup> shared_sums: array<vec2<f32>, 256>;

fn total(thread: u32, value: vec2<f32>) -> vec2<f32> {
    workgroupBarrier();
    shared_sums[thread] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if thread < half {
            shared_sums[thread] += shared_sums[thread + half];
        }
        workgroupBarrier();
    }
    return shared_sums[0];
}

fn log_q(row: u32, logit: f32) -> f32 {
    return logit / p.temperature - student_stats[3u * row] - log(student_stats[3u * row + 1u]);
}

fn log_p(row: u32, logit: f32) -> f32 {
    return logit / p.temperature - teacher_stats[3u * row] - log(teacher_stats[3u * row + 1u]);
}

// ln((eᵃ + eᵇ)/2)
fn log_mean(a: f32, b: f32) -> f32 {
    return max(a, b) + log(0.5 * (1.0 + exp(-abs(a - b))));
}

// p' and p'/q' of a row; 0 if p' does not count.
fn rest(row: u32, thread: u32) -> vec2<f32> {
    var listed = 0.0;
    for (var j = thread; j < p.k; j += 256u) {
        listed += exp(teacher[row * p.k + j]);
    }
    let others = 1.0 - total(thread, vec2<f32>(listed, 0.0)).x;
    if others <= NOTHING {
        return vec2<f32>();
    }
    return vec2<f32>(others, others / max(1.0 - sums[2u * row + 1u], NOTHING));
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    for (var row = group.x; row < p.rows; row += groups.x) {
        let base = row * p.width;
        let ignored = targets[row] == IGNORE;
        if STAGE == 0u {
            var sum = vec2<f32>();
            if KIND == 3u {
                for (var j = thread; j < p.k; j += 256u) {
                    // Wraps around for a token before the first.
                    let at = ids[row * p.k + j] - p.first;
                    if at < p.width {
                        let a = teacher[row * p.k + j];
                        let b = log_q(row, logits[base + at]);
                        sum += vec2<f32>(exp(a) * (a - b), exp(b));
                    }
                }
            } else {
                for (var i = thread; i < p.width; i += 256u) {
                    let a = log_p(row, teacher[base + i]);
                    let b = log_q(row, logits[base + i]);
                    if KIND == 0u {
                        sum.x += exp(a) * (a - b);
                    } else if KIND == 1u {
                        sum.x += exp(b) * (b - a);
                    } else {
                        let m = log_mean(a, b);
                        sum += vec2<f32>(exp(a) * (a - m), exp(b) * (b - m));
                    }
                }
            }
            sum = total(thread, sum);
            if thread == 0u {
                if FIRST == 0u {
                    sum += vec2<f32>(sums[2u * row], sums[2u * row + 1u]);
                }
                sums[2u * row] = sum.x;
                sums[2u * row + 1u] = sum.y;
            }
        } else if STAGE == 1u {
            var d = sums[2u * row];
            if KIND == 2u {
                d = 0.5 * (d + sums[2u * row + 1u]);
            } else if KIND == 3u {
                let others = rest(row, thread);
                if others.x > 0.0 {
                    d += others.x * log(others.y);
                }
            }
            if thread == 0u {
                out[row] = select(p.temperature * p.temperature * d, 0.0, ignored);
            }
        } else {
            let hard = select(p.hard, 0.0, ignored);
            let soft = select(p.soft * p.temperature, 0.0, ignored);
            let largest = plain[3u * row];
            let sum = plain[3u * row + 1u];
            let target_at = targets[row] - p.first;
            var ratio = 0.0;
            if KIND == 3u {
                ratio = rest(row, thread).y;
                // Differences of the k from the others, while their logits are there.
                for (var j = thread; j < p.k; j += 256u) {
                    let at = ids[row * p.k + j] - p.first;
                    if at < p.width {
                        let q = exp(log_q(row, logits[base + at]));
                        out[row * p.k + j] = soft * (q * ratio - exp(teacher[row * p.k + j]));
                    }
                }
                storageBarrier();
            }
            for (var i = thread; i < p.width; i += 256u) {
                let logit = logits[base + i];
                var gradient = hard * exp(logit - largest) / sum;
                if i == target_at {
                    gradient -= hard;
                }
                let b = log_q(row, logit);
                if KIND == 3u {
                    gradient += soft * exp(b) * (1.0 - ratio);
                } else {
                    let a = log_p(row, teacher[base + i]);
                    if KIND == 0u {
                        gradient += soft * (exp(b) - exp(a));
                    } else if KIND == 1u {
                        gradient += soft * exp(b) * (b - a - sums[2u * row]);
                    } else {
                        gradient += soft * 0.5 * exp(b) * (b - log_mean(a, b) - sums[2u * row + 1u]);
                    }
                }
                logits[base + i] = gradient;
            }
            if KIND == 3u {
                storageBarrier();
                for (var j = thread; j < p.k; j += 256u) {
                    let at = ids[row * p.k + j] - p.first;
                    if at < p.width {
                        logits[base + at] += out[row * p.k + j];
                    }
                }
            }
        }
    }
}
