// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// mpl is the licence that asks to say where the source is (section 3.2).
const mpl = "MPL-2.0"

// phrases tell licences apart, by their SPDX identifiers.
var phrases = []struct {
	id     string
	phrase *regexp.Regexp
}{
	{"Apache-2.0", regexp.MustCompile(`(?i)Apache License,? +Version 2\.0`)},
	{"BSD-2-Clause", regexp.MustCompile(`Redistribution and use in source and binary forms`)},
	{"BSD-3-Clause", regexp.MustCompile(`Neither the name`)},
	{mpl, regexp.MustCompile(`Mozilla Public License,? [Vv]ersion 2\.0`)},
	{"MIT", regexp.MustCompile(`Permission is hereby granted, free of charge`)},
}

// licences returns the SPDX identifiers of a module's licences. One that is not known is an
// error, for somebody has to read it.
func (m module) licences() ([]string, error) {
	var all strings.Builder
	for _, t := range m.texts {
		all.WriteString(strings.Join(strings.Fields(t.content), " ") + "\n")
	}
	var ids []string
	for _, p := range phrases {
		if !p.phrase.MatchString(all.String()) {
			continue
		}
		// The text with three clauses is the one with two and a further one.
		if n := len(ids); p.id == "BSD-3-Clause" && n > 0 && ids[n-1] == "BSD-2-Clause" {
			ids = ids[:n-1]
		}
		ids = append(ids, p.id)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("the licence of %s is not a known one: read it, and add it to packaging/sbom/licence.go", m.path)
	}
	return ids, nil
}

// major is the end of the paths of modules from v2 on.
var major = regexp.MustCompile(`/v[0-9]+$`)

// source returns where the module's source can be had. Only hosts of which that is known
// are taken.
func (m module) source() (string, error) {
	path := major.ReplaceAllString(m.path, "")
	if parts := strings.Split(path, "/"); parts[0] != "github.com" || len(parts) != 3 {
		return "", fmt.Errorf("%s is under %s, and where its source is can't be told from its path: add it to packaging/sbom/licence.go", m.path, mpl)
	}
	return "https://" + path + "/tree/" + strings.TrimSuffix(m.version, "+incompatible"), nil
}

// writeNotices prints the sources of modules under the MPL, and the licences of all modules.
func writeNotices(w io.Writer, modules []module) error {
	var b strings.Builder
	b.WriteString("Parts of other projects are in the program meshd. Their licences are below.\n\n" +
		"These are under the Mozilla Public License 2.0, unchanged. Their source is at:\n\n")
	for _, m := range modules {
		ids, err := m.licences()
		if err != nil {
			return err
		}
		if !slices.Contains(ids, mpl) {
			continue
		}
		source, err := m.source()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "  %s %s\n    %s\n", m.path, m.version, source)
	}
	for _, m := range modules {
		fmt.Fprintf(&b, "\n======== %s %s\n", m.path, m.version)
		for _, t := range m.texts {
			b.WriteString("\n" + strings.TrimRight(t.content, "\n") + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
