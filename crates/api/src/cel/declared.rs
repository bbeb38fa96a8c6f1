//! The types of the server's own kinds, as expressions that are checked before there is an object see them.

use std::sync::Arc;

use super::types::{Object, Type};
use crate::kinds::Kind;
use crate::schema::{Shape, Struct, shape_of};

/// Types below so many others are not looked into.
const MAX_DEPTH: usize = 16;

/// The type of a built-in kind's objects; `dyn` for one that a CustomResourceDefinition declares.
pub fn of_kind(kind: &Kind) -> Type {
    if kind.custom.is_some() { Type::Dyn } else { of_shape(shape_of(&kind.type_name), &mut Vec::new()) }
}

fn of_shape(shape: Shape, around: &mut Vec<&'static str>) -> Type {
    match shape {
        Shape::Bool => Type::Bool,
        Shape::Int32 | Shape::Int64 => Type::Int,
        Shape::Double => Type::Double,
        Shape::String => Type::String,
        Shape::Bytes => Type::Bytes,
        Shape::Time | Shape::MicroTime => Type::Timestamp,
        // A number or a text: known when there is a value.
        Shape::IntOrString | Shape::Quantity | Shape::Any => Type::Dyn,
        Shape::List(item) => Type::list(of_shape(*item, around)),
        Shape::Map(value) => Type::map(of_shape(*value, around)),
        Shape::Struct(this) => of_struct(this, around),
    }
}

/// Types that contain themselves (a JSON schema) are looked into once.
fn of_struct(this: &'static Struct, around: &mut Vec<&'static str>) -> Type {
    if around.len() >= MAX_DEPTH || around.contains(&this.name) {
        return Type::Dyn;
    }
    around.push(this.name);
    let fields: Vec<(Box<str>, Type)> =
        this.fields().iter().map(|field| (field.name.into(), of_shape(field.shape, around))).collect();
    around.pop();
    Type::Object(Arc::new(Object::new(this.name, fields)))
}
