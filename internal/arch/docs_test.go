// SPDX-License-Identifier: Apache-2.0

package arch_test

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	fence = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	// The end of a link: [text](target). Not of one in `code`.
	link    = regexp.MustCompile("`[^`\n]*`|\\]\\(([^) ]+)\\)")
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	named   = regexp.MustCompile(`<a id="([^"]+)">`)
	markup  = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns what a link may name in a page after #: its headings, as GitHub spells
// them, and named places.
func anchors(page string) map[string]bool {
	found := make(map[string]bool)
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		text := markup.ReplaceAllString(m[1], "$1")
		base := strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(text), ""), " ", "-")
		anchor := base
		for n := 1; found[anchor]; n++ {
			anchor = base + "-" + strconv.Itoa(n)
		}
		found[anchor] = true
	}
	for _, m := range named.FindAllStringSubmatch(page, -1) {
		found[m[1]] = true
	}
	return found
}

// brokenLinks returns the relative links of all pages that lead nowhere. The key of a page
// is its path; exists reports whether there is any other file.
func brokenLinks(pages map[string]string, exists func(string) bool) []string {
	var broken []string
	for _, from := range slices.Sorted(maps.Keys(pages)) {
		for _, m := range link.FindAllStringSubmatch(pages[from], -1) {
			target := m[1]
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(target, "#")
			to := from
			if file != "" {
				to = path.Join(path.Dir(from), file)
			}
			page, ok := pages[to]
			if !ok && !exists(to) || anchor != "" && !anchors(page)[anchor] {
				broken = append(broken, from+": "+target)
			}
		}
	}
	return broken
}

func TestBrokenLinks(t *testing.T) {
	pages := map[string]string{
		"a.md":   "# A `node`, and [B](d/f)\n# Twice\n# Twice\n[1](#a-node-and-b) [2](#twice-1) [3](#twice-2) [4](d/b.md#here) [5](d/b.md#there) [6](c) [7](https://c) `[8](no)`\n[9](d/f)",
		"d/b.md": `<a id="here"></a> [1](../a.md) [2](a.md)`,
	}
	got := brokenLinks(pages, func(name string) bool { return name == "d/f" })
	if want := []string{"a.md: #twice-2", "a.md: d/b.md#there", "a.md: c", "d/b.md: a.md"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLinks follows the links between the pages, and from pages to other files.
func TestLinks(t *testing.T) {
	pages := make(map[string]string)
	walk(t, func(name string, content []byte) {
		if strings.HasSuffix(name, ".md") {
			pages[name] = fence.ReplaceAllString(string(content), "")
		}
	})
	if len(pages) < 10 {
		t.Fatalf("got %d pages, want more", len(pages))
	}
	for _, broken := range brokenLinks(pages, func(name string) bool {
		_, err := os.Stat(filepath.Join(root(t), name))
		return err == nil
	}) {
		t.Errorf("broken link in %s", broken)
	}
}
