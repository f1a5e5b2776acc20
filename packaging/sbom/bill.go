// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// bill is a bill of materials as CycloneDX 1.5 defines it, with those of its fields
// that are used here (https://cyclonedx.org/docs/1.5/json/).
type bill struct {
	Schema       string       `json:"$schema"`
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Time      string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type       string      `json:"type"`
	Ref        string      `json:"bom-ref"`
	Name       string      `json:"name"`
	Version    string      `json:"version"`
	Licences   []licence   `json:"licenses"`
	PURL       string      `json:"purl"`
	References []reference `json:"externalReferences,omitempty"`
	Properties []property  `json:"properties,omitempty"`
}

type licence struct {
	Expression string `json:"expression"` // of SPDX
}

type reference struct {
	Type string `json:"type"`
	URL  string `json:"url"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// purl names a module as https://github.com/package-url/purl-spec does.
func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.NewReplacer("+", "%2B", "~", "%7E").Replace(version)
}

// describe returns the component that a module is.
func describe(m module) (component, error) {
	ids, err := m.licences()
	if err != nil {
		return component{}, err
	}
	ref := purl(m.path, m.version)
	c := component{Type: "library", Ref: ref, Name: m.path, Version: m.version, Licences: []licence{{strings.Join(ids, " AND ")}}, PURL: ref}
	if slices.Contains(ids, mpl) {
		source, err := m.source()
		if err != nil {
			return c, err
		}
		c.References = []reference{{"vcs", source}}
	}
	if m.sum != "" {
		// Not a hash in CycloneDX's sense, which is one of a file.
		c.Properties = []property{{"go.sum", m.sum}}
	}
	return c, nil
}

// writeBill prints the bill of meshd. Equal arguments give equal bytes.
func writeBill(w io.Writer, version string, at time.Time, modules []module) error {
	main := purl("github.com/meshd/meshd", version)
	b := bill{
		Schema: "http://cyclonedx.org/schema/bom-1.5.schema.json", Format: "CycloneDX", Spec: "1.5", Version: 1,
		Metadata: metadata{at.Format(time.RFC3339), component{
			Type: "application", Ref: main, Name: "meshd", Version: version, Licences: []licence{{"Apache-2.0"}}, PURL: main,
		}},
		Dependencies: []dependency{{Ref: main}},
	}
	for _, m := range modules {
		c, err := describe(m)
		if err != nil {
			return err
		}
		b.Components = append(b.Components, c)
		b.Dependencies[0].DependsOn = append(b.Dependencies[0].DependsOn, c.Ref)
	}
	content, err := json.Marshal(b)
	if err != nil {
		return err
	}
	b.Serial = serial(sha256.Sum256(content))
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(b)
}

// serial makes a UUID of a hash: version 8 of RFC 9562, whose bits are the maker's own.
func serial(hash [sha256.Size]byte) string {
	u := hash[:16]
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
