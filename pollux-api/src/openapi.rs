//! The OpenAPI document of the API, made of the types and of the list of endpoints.

use std::collections::BTreeMap;

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, PathItem, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ComponentsBuilder};
use utoipa::openapi::server::Server;
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required, ResponseBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::problem::{self, Problem};
use crate::routes::{Body, Method, Route};

/// Schemas by name.
type Schemas = Vec<(String, RefOr<Schema>)>;

/// The document.
#[must_use]
pub fn document() -> OpenApi {
    let mut schemas = Schemas::new();
    Problem::schemas(&mut schemas);
    schemas.push((Problem::name().into_owned(), Problem::schema()));
    let paths = Route::ALL.iter().fold(PathsBuilder::new(), |paths, route| {
        let method = match route.method() {
            Method::Get => HttpMethod::Get,
            Method::Put => HttpMethod::Put,
        };
        paths.path(format!("/{}", route.name()), PathItem::new(method, operation(*route, &mut schemas)))
    });
    // In the order of their names, so that the document changes only where the types do.
    let schemas: BTreeMap<_, _> = schemas.into_iter().collect();
    let info = InfoBuilder::new()
        .title("Pollux API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The API of pollux-vmm, on its unix socket: that of Cloud Hypervisor as far as Pollux has what it asks for, and \
             ft.* for fault tolerance. A client that accepts application/problem+json gets errors as a Problem, any other one \
             as an array of sentences.",
        ))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .servers(Some([Server::new("http://localhost/api/v1")]))
        .paths(paths.build())
        .components(Some(ComponentsBuilder::new().schemas_from_iter(schemas).build()))
        .build()
}

fn operation(route: Route, schemas: &mut Schemas) -> OperationBuilder {
    let tag = route.name().split('.').next().unwrap_or_default();
    let mut operation =
        OperationBuilder::new().operation_id(Some(route.name())).summary(Some(route.summary().trim())).tag(tag);
    if let Some(request) = route.request() {
        let required = if route.body() == Body::Required { Required::True } else { Required::False };
        let content = ContentBuilder::new().schema(Some(request(schemas))).build();
        let body = RequestBodyBuilder::new().content("application/json", content).required(Some(required));
        operation = operation.request_body(Some(body.build()));
    }
    let done = match route.answer() {
        Some(answer) => {
            let content = ContentBuilder::new().schema(Some(answer(schemas))).build();
            ("200", ResponseBuilder::new().description("The answer").content("application/json", content).build())
        }
        // As Cloud Hypervisor answers it.
        None if route == Route::VmmShutdown => ("200", ResponseBuilder::new().description("Done").build()),
        None => ("204", ResponseBuilder::new().description("Done").build()),
    };
    let sentences =
        ArrayBuilder::new().items(String::schema()).description(Some("From the outermost to the root cause"));
    let problem = RefOr::Ref(Ref::from_schema_name(Problem::name()));
    let failed = ResponseBuilder::new()
        .description("Why it is not done")
        .content("application/json", ContentBuilder::new().schema(Some(RefOr::T(sentences.build().into()))).build())
        .content(problem::MEDIA_TYPE, ContentBuilder::new().schema(Some(problem)).build());
    operation.response(done.0, done.1).response("default", failed.build())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Set it to have the document written instead of compared.
    const WRITE: &str = "POLLUX_WRITE_OPENAPI";

    #[test]
    fn the_committed_document_is_that_of_the_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        let document = document().to_pretty_json().unwrap() + "\n";
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(path, document).unwrap();
            return;
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == document,
            "pollux-api/openapi.json is not current: run `{WRITE}=1 cargo test -p pollux-api openapi`"
        );
    }

    #[test]
    fn every_reference_has_its_schema() {
        let document = serde_json::to_value(document()).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let text = document.to_string();
        let mut references: Vec<&str> =
            text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        references.sort_unstable();
        references.dedup();
        assert!(references.len() > 20, "{references:?}");
        for name in references {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
