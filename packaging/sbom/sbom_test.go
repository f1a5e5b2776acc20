// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

const (
	mitText = "Permission is hereby granted, free of\ncharge, to any person"
	bsdText = "Redistribution and use in source and binary forms, with or without"
	mplText = "Mozilla Public License, version 2.0"
)

func TestLicences(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts []text
		want  string
	}{
		{"MIT", []text{{"LICENSE", mitText}}, "MIT"},
		{"two clauses", []text{{"LICENSE", bsdText}}, "BSD-2-Clause"},
		{"three clauses", []text{{"LICENSE", bsdText + " Neither the name of"}}, "BSD-3-Clause"},
		{"heading of Apache", []text{{"LICENSE", "  Apache License\n   Version 2.0, January 2004"}}, "Apache-2.0"},
		{"MPL", []text{{"LICENSE", mplText}}, "MPL-2.0"},
		{"two licences in two files", []text{{"LICENSE", mitText}, {"NOTICE", "Apache License, Version 2.0"}}, "Apache-2.0 AND MIT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ids, err := module{path: "example.com/a", texts: test.texts}.licences()
			if got := strings.Join(ids, " AND "); err != nil || got != test.want {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

// TestUnknownIsRefused: nobody ships a module whose licence nobody has read, nor one under the
// MPL without a word of where its source is.
func TestUnknownIsRefused(t *testing.T) {
	for _, m := range []module{
		{path: "example.com/none"},
		{path: "example.com/other", texts: []text{{"LICENSE", "All rights reserved."}}},
		{path: "example.com/mpl", version: "v1.0.0", texts: []text{{"LICENSE", mplText}}},
	} {
		var out bytes.Buffer
		for name, err := range map[string]error{
			"bill":    writeBill(&out, "1.2.3", time.Time{}, []module{m}),
			"notices": writeNotices(&out, []module{m}),
		} {
			if err == nil || !strings.Contains(err.Error(), m.path) || !strings.Contains(err.Error(), "licence.go") {
				t.Errorf("%s of %s: got %v, want an error that names it and what to change", name, m.path, err)
			}
		}
		if out.Len() > 0 {
			t.Errorf("%s: printed %q beside the error", m.path, &out)
		}
	}
}

func TestSource(t *testing.T) {
	for path, want := range map[string]string{
		"github.com/a/b":    "https://github.com/a/b/tree/v2.0.1",
		"github.com/a/b/v2": "https://github.com/a/b/tree/v2.0.1",
	} {
		if got, err := (module{path: path, version: "v2.0.1"}).source(); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
}
