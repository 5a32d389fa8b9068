//! Encodes a file with GPT-2's tokenizer on one thread and prints the speed:
//!
//!     cargo run --release -p ngen3-data --example encode -- FILE [IDS_OUT]
//!
//! With IDS_OUT the ids are written there as little-endian u32, for comparison with another tokenizer.

use std::time::Instant;

use ngen3_data::tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, file, rest @ ..] = args.as_slice() else { return Err("usage: encode FILE [IDS_OUT]".into()) };
    let text = std::fs::read_to_string(file)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::gpt2();
    println!("ready in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.clear();
        let start = Instant::now();
        tokenizer.encode_into(&text, &mut ids)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{} ids from {} bytes: {:.1} MB/s", ids.len(), text.len(), text.len() as f64 / 1e6 / seconds);
    }
    if tokenizer.decode(&ids) != text {
        return Err("decoding the ids does not give the text".into());
    }
    if let [out, ..] = rest {
        std::fs::write(out, ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}
