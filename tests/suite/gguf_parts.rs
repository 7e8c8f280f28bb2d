//! A model in several GGUF files: any part names the whole, and what is missing or of another model is named.

use std::fs::File;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Content, Value};
use rlvr::formats::gguf::GgufModel;

use crate::support::room::{INPUT, Room, no_faults};

const COUNT: usize = 3;

/// `name` with its metadata as they are, split as llama.cpp's gguf-split does it; `change` is done to each part's numbers.
fn split(room: &Room, name: &str, to: &str, change: impl Fn(usize, &mut Vec<(&'static str, Value)>)) {
    let mut file = File::open(room.at(name)).unwrap();
    let whole = Content::read(&mut file).unwrap();
    let mut names: Vec<&String> = whole.tensor_infos.keys().collect();
    names.sort();
    let tensors: Vec<(&str, QTensor)> = names
        .iter()
        .map(|name| (name.as_str(), whole.tensor(&mut file, name, &Device::Cpu).unwrap()))
        .collect();
    let size = tensors.len().div_ceil(COUNT);
    for (number, part) in tensors.chunks(size).enumerate() {
        let mut numbers = vec![
            ("split.no", Value::U16(number as u16)),
            ("split.count", Value::U16(COUNT as u16)),
            ("split.tensors.count", Value::I32(tensors.len() as i32)),
        ];
        change(number, &mut numbers);
        let own = whole.metadata.iter().filter(|_| number == 0).map(|(key, value)| (key.as_str(), value));
        let metadata: Vec<(&str, &Value)> =
            own.chain(numbers.iter().map(|(key, value)| (*key, value))).collect();
        let part: Vec<(&str, &QTensor)> = part.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let path = room.at(&format!("{to}-{:05}-of-{COUNT:05}.gguf", number + 1));
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &part).unwrap();
    }
}

fn with_whole() -> Room {
    let room = Room::new();
    let (code, stderr) = room.rlvr("export model whole.gguf --format gguf --quant f32");
    assert_eq!(code, Some(0), "{stderr}");
    room
}

#[test]
fn any_part_is_the_whole_model() {
    let room = with_whole();
    split(&room, "whole.gguf", "g", |_, _| ());
    let read = |path: &Path| {
        let model = GgufModel::open(path).unwrap();
        let tensors = model.config.parameter_names().into_iter().map(|(name, _)| {
            let tensor = model.tensor(&name).unwrap().flatten_all().unwrap();
            (name, tensor.to_vec1::<f32>().unwrap())
        });
        tensors.collect::<Vec<_>>()
    };
    let whole = read(&room.at("whole.gguf"));
    for number in 1..=COUNT {
        assert_eq!(read(&room.at(&format!("g-{number:05}-of-{COUNT:05}.gguf"))), whole, "part {number}");
    }
    let (code, stderr) = room.rlvr("import g-00002-of-00003.gguf out --dtype f32");
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn parts_that_are_missing_or_mixed_up_are_named() {
    type Spoil = fn(&Room);
    let cases: [(Spoil, &[&str]); 7] = [
        (
            |room| std::fs::remove_file(room.at("g-00003-of-00003.gguf")).unwrap(),
            &[
                "g-00003-of-00003.gguf: part of the model that g-00002-of-00003.gguf is of, and not there. Fetch",
            ],
        ),
        (
            |room| {
                for name in ["g-00001-of-00003.gguf", "g-00003-of-00003.gguf"] {
                    std::fs::remove_file(room.at(name)).unwrap();
                }
            },
            &["g-00001-of-00003.gguf: part of", "not there, nor are 1 others"],
        ),
        (
            |room| {
                std::fs::rename(room.at("g-00001-of-00003.gguf"), room.at("g-00002-of-00003.gguf")).unwrap()
            },
            &[
                "g-00002-of-00003.gguf: split.no: part 1 of 3, by its name another",
                "NAME-00001-of-00003.gguf",
            ],
        ),
        (
            |room| {
                std::fs::copy(room.at("g-00001-of-00003.gguf"), room.at("g-00003-of-00003.gguf")).unwrap();
            },
            &["g-00003-of-00003.gguf: split.no: 0, where 2 is wanted", "a folder of their own"],
        ),
        (
            |room| {
                split(room, "whole.gguf", "g", |number, numbers| {
                    if number == 0 {
                        numbers[2].1 = Value::I32(7);
                    }
                })
            },
            &["g-00001-of-00003.gguf: split.tensors.count: 7, where 11 is wanted"],
        ),
        (
            |room| split(room, "whole.gguf", "g", |_, numbers| numbers[2].1 = Value::I32(12)),
            &["split.tensors.count: 12, but the parts have 11"],
        ),
        (
            |room| split(room, "whole.gguf", "g", |_, numbers| numbers[1].1 = Value::U16(u16::MAX)),
            &["split.count: 65535 parts, more than 1000"],
        ),
    ];
    let room = with_whole();
    no_faults(cases.into_iter().map(|(spoil, says)| {
        split(&room, "whole.gguf", "g", |_, _| ());
        spoil(&room);
        room.fault("import g-00002-of-00003.gguf out", INPUT, says)
    }));
    // The same tensor in two parts.
    split(&room, "whole.gguf", "g", |_, _| ());
    let twin = std::fs::read(room.at("g-00001-of-00003.gguf")).unwrap();
    let key = b"split.no";
    let at = twin.windows(key.len()).position(|bytes| bytes == key).unwrap() + key.len() + 4;
    let mut twin = twin;
    twin[at] = 1;
    room.write("g-00002-of-00003.gguf", twin);
    no_faults(
        [room.fault("import g-00001-of-00003.gguf out", INPUT, &["an earlier part has this tensor too"])]
            .into_iter(),
    );
}
