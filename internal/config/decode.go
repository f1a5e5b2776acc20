// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// decoder walks a YAML tree along the table of keys. It collects all errors instead of
// stopping at the first one.
type decoder struct {
	file   string
	config Config
	lines  map[string]int  // line of each key, and of each list's entry, in the file
	faulty map[string]bool // keys with an error
	errs   []*Error
}

// decode parses a file's content and checks its settings.
func decode(file string, data []byte) *decoder {
	d := &decoder{
		file: file, config: defaults(),
		lines: make(map[string]int), faulty: make(map[string]bool),
	}
	root, err := parse(data)
	if err != nil {
		err.File = file
		d.errs = append(d.errs, err)
		return d
	}
	if d.plain("", root) {
		d.section("", root)
	}
	if _, ok := d.lines["secret-file"]; !ok {
		d.report("secret-file", "is missing", "write secret-file: "+secretExample)
	}
	d.complete()
	d.check()
	return d
}

// errors returns all errors: those of this file by line, then those of the secret file.
func (d *decoder) errors(secretErrs []*Error) []error {
	slices.SortStableFunc(d.errs, compareLines)
	var errs []error
	for _, e := range append(d.errs, secretErrs...) {
		errs = append(errs, e)
	}
	return errs
}

// result returns the configuration, or all errors of this file.
func (d *decoder) result() (Config, error) {
	if errs := d.errors(nil); len(errs) > 0 {
		return Config{}, errors.Join(errs...)
	}
	return d.config, nil
}

// report adds an error of a key or of a list's entry. If the file doesn't contain it, the
// error gets the line of the nearest section around it.
func (d *decoder) report(key, problem, advice string) {
	d.fail(d.line(key), key, wrong(problem, advice))
}

func (d *decoder) fail(line int, key string, err *Error) {
	err.File, err.Line, err.Key = d.file, line, key
	d.errs = append(d.errs, err)
	d.faulty[listOf(key)] = true
}

// line returns the line of a key or a list's entry, or else of the nearest section around
// it.
func (d *decoder) line(key string) int {
	for key != "" {
		if n, ok := d.lines[key]; ok {
			return n
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return 1
}

// entry returns the path of a list's entry.
func entry(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

// listOf returns the path of the list from that of an entry.
func listOf(key string) string {
	list, _, _ := strings.Cut(key, "[")
	return list
}

// sound reports whether none of the keys has an error.
func (d *decoder) sound(keys ...string) bool {
	return !slices.ContainsFunc(keys, func(k string) bool { return d.faulty[k] })
}

// section reads the keys of a mapping. A section without a value is empty, so that all its
// keys may be commented out.
func (d *decoder) section(path string, n *yaml.Node) {
	if n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n.Line, path, wrong("is a section", "write its keys below it, as name: value"))
		return
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		if name.Kind != yaml.ScalarNode {
			d.fail(name.Line, path, wrong("has a key that is not plain text", "write name: value"))
			continue
		}
		key := pathOf(path, name.Value)
		if first, ok := seen[name.Value]; ok {
			d.fail(name.Line, printable(key), wrong(fmt.Sprintf("is here a second time, after line %d", first), "keep one of the two"))
			continue
		}
		seen[name.Value] = name.Line
		d.pair(path, name, value)
	}
}

// pair reads one name and its value in a section.
func (d *decoder) pair(section string, name, value *yaml.Node) {
	path := pathOf(section, name.Value)
	k, isKey := lookup(path)
	if !slices.Contains(children(section), name.Value) {
		d.fail(name.Line, printable(path), wrong("unknown key", suggest(section, name.Value)))
		return
	}
	d.lines[path] = name.Line
	switch {
	case !d.plain(path, name) || !d.plain(path, value):
	case !isKey:
		d.section(path, value)
	case k.list:
		d.list(k, value)
	default:
		d.scalar(k, path, value)
	}
}

// plain refuses the features of YAML beyond mappings, lists and scalars, and reports
// whether there are none. Such a small file needs none of them, and aliases can make a
// huge tree from a small file.
func (d *decoder) plain(path string, n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode, n.Anchor != "":
		d.fail(n.Line, path, wrong("has a YAML anchor or alias (& or *)", "write the value itself, in quotes if it begins with one of these characters"))
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n.Line, path, wrong("has a YAML tag (!)", "write the value alone, in quotes if it begins with this character"))
	default:
		return true
	}
	return false
}

// list reads the entries of a list.
func (d *decoder) list(k key, n *yaml.Node) {
	switch {
	case n.Tag == "!!null":
		d.report(k.path, "has no value", "write a list, or remove the key")
		return
	case n.Kind == yaml.ScalarNode:
		d.report(k.path, "is a list", "write ["+printable(n.Value)+"]")
		return
	case n.Kind != yaml.SequenceNode:
		d.report(k.path, "is a list", "write its entries in brackets, or below it, each after a dash")
		return
	}
	if had := k.reset(&d.config); had > 0 && len(n.Content) == 0 {
		d.report(k.path, "is empty", "remove the key for its default")
	}
	for i, value := range n.Content {
		path := entry(k.path, i)
		if d.plain(path, value) {
			d.scalar(k, path, value)
		}
	}
}

// scalar sets a key, or an entry of a list, from a single value.
func (d *decoder) scalar(k key, path string, n *yaml.Node) {
	switch {
	case n.Tag == "!!null":
		d.report(path, "has no value", "write one, or remove the key")
	case n.Kind != yaml.ScalarNode:
		d.fail(n.Line, path, wrong("is a single value", "write it behind the colon, in quotes if it has brackets or braces"))
	default:
		d.lines[path] = n.Line
		if err := k.set(&d.config, n.Value); err != nil {
			d.fail(n.Line, path, err)
		}
	}
}

// printable returns text from a file for an error: as it is if all its characters are
// printable and it is short, else quoted.
func printable(s string) string {
	if q := quote(s); s == "" || q != `"`+s+`"` {
		return q
	}
	return s
}

// parse returns the tree of the only document in data.
func parse(data []byte) (*yaml.Node, *Error) {
	if len(data) > maxSize {
		return nil, &Error{Line: 1, Problem: fmt.Sprintf("the file is larger than %d bytes", maxSize), Advice: "is it the right file?"}
	}
	docs, err := documents(data)
	switch {
	case err != nil:
		return nil, malformed(data, err)
	case len(docs) > 1:
		return nil, &Error{Line: docs[1].Line, Problem: "a second document begins here", Advice: "keep one, without a line of ---"}
	case len(docs) == 0 || docs[0].Content[0].Tag == "!!null":
		return nil, &Error{Line: 1, Problem: "the file is empty", Advice: "write at least secret-file: " + secretExample}
	case docs[0].Content[0].Kind != yaml.MappingNode:
		return nil, &Error{Line: docs[0].Content[0].Line, Problem: "the file has no keys", Advice: "write name: value, such as secret-file: " + secretExample}
	}
	return docs[0].Content[0], nil
}

// documents parses all YAML documents in data.
func documents(data []byte) (docs []*yaml.Node, err error) {
	in := yaml.NewDecoder(bytes.NewReader(data))
	for {
		doc := new(yaml.Node)
		if err := in.Decode(doc); errors.Is(err, io.EOF) {
			return docs, nil
		} else if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
}

// yamlError matches the syntax errors of yaml.v3.
var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// malformed returns an error with the line where data stops being valid YAML. The line in
// yaml.v3's error is that of the construct around the mistake, and often off by one. The
// mistake itself is in the line after the longest valid beginning of the file.
func malformed(data []byte, err error) *Error {
	m := yamlError.FindStringSubmatch(err.Error())
	line, _ := strconv.Atoi(m[1])
	e := &Error{Line: max(line, 1), Problem: "is not YAML: " + m[2], Advice: "look at its indentation, brackets, quotes and colons"}

	const maxLines = 500 // each line costs a parse of all lines before it
	rows := bytes.SplitAfter(data, []byte("\n"))
	if len(rows) > maxLines {
		return e
	}
	for n := len(rows) - 1; n >= 0; n-- {
		if _, err := documents(bytes.Join(rows[:n], nil)); err == nil {
			e.Line = n + 1
			if indent := rows[n][:len(rows[n])-len(bytes.TrimLeft(rows[n], " \t"))]; bytes.ContainsRune(indent, '\t') {
				e.Problem, e.Advice = "is indented with a tab", "use spaces"
			}
			break
		}
	}
	return e
}
