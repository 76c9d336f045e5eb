"""One HTML page on one model or several: numbers, reasons, and what the models find and miss.

What other rooms use: `page.write_report`, and `page.check_report` before the work.
"""
