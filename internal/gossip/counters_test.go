// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMeanings: each reason that occurs in the package has a meaning, and no others.
func TestMeanings(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	prefix := regexp.MustCompile(`"((?:call|dial|member|object|packet|remembered|state|stream)-[a-z-]+)"`)
	found := make(map[string]bool)
	for _, file := range files {
		if file == "counters.go" || regexp.MustCompile(`_test\.go$`).MatchString(file) {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range prefix.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(meanings))); diff != "" {
		t.Errorf("reasons (-in the source +with a meaning):\n%s", diff)
	}
}
