// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// A command line of meshd in a script begins a line, or follows sudo or an operator of the
// shell; in prose it is in `quotes`. Both end where the command does.
var (
	inScripts = regexp.MustCompile("(?m)(?:^ *|sudo |[|&;] )meshd( [^`\n|&;<>#]*)")
	inProse   = regexp.MustCompile("`(?:sudo )?meshd( [^`\n|&;<>#]*)`")
	word      = regexp.MustCompile(`^(--)?[a-z]+$`)
)

// commands returns the arguments of the commands of meshd in a page, or in a script.
func commands(page string, isScript bool) (found [][]string) {
	for i, part := range strings.Split(page, "```") { // prose and scripts in turns
		re := inProse
		if isScript || i%2 == 1 {
			re = inScripts
		}
		for _, m := range re.FindAllStringSubmatch(part, -1) {
			if args := strings.Fields(m[1]); len(args) > 0 && word.MatchString(args[0]) { // no output of meshd
				found = append(found, args)
			}
		}
	}
	return found
}

// unknown returns the first word that the command line doesn't know, or "".
func unknown(args []string) string {
	cmd, rest, err := newRoot().Find(args)
	if err != nil || !cmd.HasParent() && !strings.HasPrefix(args[0], "-") || cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return args[0]
	}
	for _, arg := range rest {
		name, isFlag := strings.CutPrefix(arg, "--")
		name, _, _ = strings.Cut(name, "=")
		short, isShort := strings.CutPrefix(arg, "-")
		switch {
		case isFlag && flagOf(cmd, name) == nil:
			return arg
		case !isFlag && isShort && short != "" && cmd.Flags().ShorthandLookup(short[:1]) == nil && short[:1] != "h":
			return arg
		}
	}
	return ""
}

func flagOf(cmd *cobra.Command, name string) any {
	if name == "help" || name == "version" && !cmd.HasParent() {
		return name
	}
	if f := cmd.Flag(name); f != nil {
		return f
	}
	return nil
}

// TestCommandsOfPages: the commands in README, docs and examples exist, with their flags.
func TestCommandsOfPages(t *testing.T) {
	pages := []string{"../../README.md", "../../CONTRIBUTING.md"}
	for _, dir := range []string{"../../docs", "../../packaging/examples"} {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && (filepath.Ext(path) == ".md" || filepath.Ext(path) == ".yaml") {
				pages = append(pages, path)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	checked := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range commands(string(text), filepath.Ext(page) == ".yaml") {
			checked++
			if word := unknown(args); word != "" {
				t.Errorf("%s: meshd %s: unknown %s", page, strings.Join(args, " "), word)
			}
		}
	}
	if checked < 100 {
		t.Errorf("got %d commands, want more", checked)
	}
}

func TestUnknownWords(t *testing.T) {
	for line, want := range map[string]string{
		"status --probe -o json":                "",
		"client add laptop --out laptop.conf":   "",
		"token --address=aws.example.com":       "",
		"status --prob":                         "--prob",
		"status -x":                             "-x",
		"stats":                                 "stats",
		"client ad laptop":                      "client",
		"join --name a --set k3s.role=agent - ": "",
	} {
		if got := unknown(strings.Fields(line)); got != want {
			t.Errorf("meshd %s: got %q, want %q", line, got, want)
		}
	}
}
