// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"unicode/utf8"
)

// color is an ANSI sequence that begins a color, "" for none.
type color string

const (
	plain  color = ""
	red    color = "\x1b[31m"
	green  color = "\x1b[32m"
	yellow color = "\x1b[33m"
)

// paint returns s in a color.
func (c color) paint(s string) string {
	if c == plain || s == "" {
		return s
	}
	return string(c) + s + "\x1b[0m"
}

// cell is one place in a table.
type cell struct {
	text  string
	color color
}

// cells returns cells without a color.
func cells(texts ...string) []cell {
	row := make([]cell, len(texts))
	for i, t := range texts {
		row[i].text = t
	}
	return row
}

// minColumn is how narrow a column can become, in characters.
const minColumn = 8

// layOut returns rows as lines in aligned columns. If width is not 0, the widest columns are cut until
// a line has at most so many characters, or all columns are as narrow as they can become.
func layOut(rows [][]cell, width int, colors bool) string {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	if width > 0 {
		shrink(widths, width)
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			text := cut(c.text, widths[i])
			padding := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+len(gap))
			if colors {
				text = c.color.paint(text)
			}
			line.WriteString(text)
			line.WriteString(padding)
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	return b.String()
}

// gap is between columns.
const gap = "  "

// shrink narrows the widest columns until all fit.
func shrink(widths []int, width int) {
	total := -len(gap)
	for _, w := range widths {
		total += w + len(gap)
	}
	for ; total > width; total-- {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= minColumn {
			return
		}
		widths[widest]--
	}
}

// cut shortens a text to a number of characters. It leaves the end, by which names of hosts differ.
func cut(s string, width int) string {
	runes := []rune(s)
	if len(runes) <= width {
		return s
	}
	tail := width / 3
	return string(runes[:width-tail-1]) + "…" + string(runes[len(runes)-tail:])
}

// wrap breaks the lines of a text between words into lines of at most width characters, the first one
// after a label, the others indented as far. Words that are longer stay whole.
func wrap(label, text string, width int) string {
	indent := strings.Repeat(" ", utf8.RuneCountInString(label))
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(wrapLine(label, indent, line, width))
		label = indent
	}
	return b.String()
}

func wrapLine(label, indent, text string, width int) string {
	var b strings.Builder
	line, column := label, utf8.RuneCountInString(label)
	empty := true
	for _, word := range strings.Fields(text) {
		length := utf8.RuneCountInString(word)
		if !empty && width > 0 && column+1+length > width {
			b.WriteString(line + "\n")
			line, column, empty = indent, len(indent), true
		}
		if !empty {
			line += " "
			column++
		}
		line, column, empty = line+word, column+length, false
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
	return b.String()
}
