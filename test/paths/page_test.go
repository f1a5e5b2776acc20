// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestPageSaysWhoMeets compares the table in the page about paths with what TestPairs asserts.
// Two nodes with IPv6 always meet, which the page says elsewhere.
func TestPageSaysWhoMeets(t *testing.T) {
	const page = "../../docs/paths.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	// The classes of nodes, in the order of the page.
	class := func(k kind) int {
		switch {
		case k.open:
			return 0
		case !k.hidden:
			return 1
		default:
			return 2
		}
	}
	names := []string{"open", "answers only", "changes ports"}
	var table [3][3]string
	for _, a := range kinds {
		for _, b := range kinds {
			if a.six && b.six {
				continue
			}
			way := "relayed"
			if meets(a, b) {
				way = "direct"
			}
			cell := &table[class(a)][class(b)]
			if *cell != "" && *cell != way {
				t.Errorf("%s and %s: %s, and others of these classes: %s", a.name, b.name, way, *cell)
			}
			*cell = way
		}
	}
	want := fmt.Sprintf("| | %s |\n|---|---|---|---|\n", strings.Join(names, " | "))
	for i, row := range table {
		want += fmt.Sprintf("| **%s** | %s |\n", names[i], strings.Join(row[:], " | "))
	}
	if !strings.Contains(string(text), want) {
		t.Errorf("%s does not have:\n%s", page, want)
	}
}
