// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// quickStart are the commands of the README's quick start, by what they begin with.
type quickStart map[string]string

// readQuickStart cuts the commands out of the README.
func readQuickStart(t *testing.T) quickStart {
	t.Helper()
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Ten lines to a mesh\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var all []string
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(section, -1) {
		all = append(all, strings.Split(strings.TrimSpace(block[1]), "\n")...)
	}
	commands := make(quickStart)
	want := []string{"apt install ", "meshd init", "meshd token", "meshd join", "k3s server ", "k3s agent "}
	for i, begin := range want {
		if i >= len(all) || !strings.HasPrefix(all[i], begin) {
			t.Fatalf("the README's quick start has the commands %q, want one that begins with each of %q", all, want)
		}
		commands[strings.TrimSpace(begin)] = all[i]
	}
	if len(all) > len(want) {
		t.Fatalf("the README's quick start has the commands %q, which this test does not all know", all)
	}
	return commands
}

// onTerminal runs a command that asks for a token, as a person types it then. What is printed has no
// secret in it.
func (n *node) onTerminal(t *testing.T, command, token string) string {
	t.Helper()
	out := n.sh(t, `rm -f /tmp/typescript
		(until grep -q 'Token, .*: $' /tmp/typescript; do sleep 0.2; done; echo '`+token+`') 2>/dev/null |
			NO_COLOR=1 script -qefc '`+command+`' /tmp/typescript >/dev/null
		cat /tmp/typescript`)
	if strings.Contains(out, token) {
		t.Errorf("%s: %s shows what is typed", n.name, command)
	}
	return out
}

// options returns the options of a command with the values left out that differ from mesh to mesh.
func options(command string) string {
	return regexp.MustCompile(`10\.4\.\d+\.\d+`).ReplaceAllString(command, "10.4.x.x")
}
